"""The best setting of every arm, by the rows of the stage of tuning."""

from collections.abc import Mapping

import pandas as pd

from inference.routing_study.stages import BOTH_WAYS, Choice
from inference.study.arms import Group, all_arms

SETTING = ["learning_rate", "load_balancing", "served"]
#: what an arm may be served by: at most two experts, unless it is all that it is about
FEW_EXPERTS = ("1", "2", "as trained")
ALL_EXPERTS = (*FEW_EXPERTS, "all")


def ways_of(arm: str) -> tuple[str, ...]:
    """
    :returns: the ways to serve an arm that compete: by its favourite expert, by two, or as it was trained; by all
        where all experts at once are what the arm trains.
    """
    return ALL_EXPERTS if all_arms()[arm].group in (Group.MARGINAL, Group.DENSE) else FEW_EXPERTS


def best(rows: pd.DataFrame) -> Choice:
    """
    :param rows: of one arm and task, with the same seeds at every setting.
    :returns: setting and way to serve of the least mean of the task's measure.
    """
    arm, measure = rows.arm.iloc[0], rows.measure.iloc[0]
    costs = rows[rows.served.isin(ways_of(arm))].groupby(SETTING, sort=False)[measure].mean()
    rate, weight, served = costs.idxmin()
    return Choice(float(rate), float(weight), str(served))


def choices(tuning: pd.DataFrame) -> dict[str, dict[str, Choice]]:
    """
    :param tuning: the rows of that stage.
    :returns: by task and arm.
    """
    found: dict[str, dict[str, Choice]] = {}
    for (task, arm), rows in tuning.groupby(["task", "arm"], sort=False):
        found.setdefault(str(task), {})[str(arm)] = best(rows)
    return found


def others(tuning: pd.DataFrame, chosen: Mapping[str, Mapping[str, Choice]]) -> dict[str, dict[str, Choice]]:
    """:returns: for the arms :data:`~inference.routing_study.stages.BOTH_WAYS` the best setting with a load-balancing
    loss where the best of all is without one, and the other way round."""
    found: dict[str, dict[str, Choice]] = {}
    for (task, arm), rows in tuning.groupby(["task", "arm"], sort=False):
        if arm in BOTH_WAYS:
            balanced = chosen[str(task)][str(arm)].load_balancing > 0
            other = rows[(rows.load_balancing > 0) != balanced]
            found.setdefault(str(task), {})[str(arm)] = best(other)
    return found


def mark_chosen(table: pd.DataFrame) -> pd.DataFrame:
    """:returns: the table with ``chosen`` set: the setting and way to serve that tuning chose, in whatever stage."""
    tuning = table[table.stage == "tuning"]
    chosen = choices(tuning)
    other = others(tuning, chosen)
    table = table.copy()
    for (stage, task, arm), rows in table.groupby(["stage", "task", "arm"], sort=False):
        of_stage = other if stage == "balance" else chosen
        choice = best(rows) if stage == "gate" else of_stage[str(task)][str(arm)]
        at = (rows.learning_rate == choice.learning_rate) & (rows.load_balancing == choice.load_balancing)
        table.loc[rows.index, "chosen"] = at & (rows.served == choice.served)
    return table
