"""The pages about the study of routing say what its table says."""

from functools import cache
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest

from inference.claims import plots
from inference.claims.page import blocks, read_table, rewritten
from inference.claims.verdicts import DOES_NOT, HOLDS, UNDECIDED, verdicts

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


@cache
def table() -> pd.DataFrame:
    """The one that is kept, held to the schema."""
    return read_table(NOTEBOOKS / "data" / "routing.csv.gz")


@pytest.mark.parametrize("name", ["claims", "routing"])
def test_the_tables_of_the_page_are_those_of_the_command(name: str) -> None:
    page = (NOTEBOOKS / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert rewritten(page, blocks(table())) == page


def test_readme_names_every_claim_of_ours_with_its_verdict() -> None:
    """What fails stands there in the same words and letters as what holds."""
    readme = (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
    listed = readme.split("<!-- claims -->")[1]
    ours = [each for each in verdicts(table()) if each.claim.of == "ours"]
    for verdict in (HOLDS, DOES_NOT, UNDECIDED):
        named = [each.claim.sentence for each in ours if each.verdict == verdict]
        lines = [line for line in listed.splitlines() if line.endswith(f"**{verdict}**")]
        assert [line.removeprefix("* ").removesuffix(f" **{verdict}**") for line in lines] == named


def test_every_task_that_has_results_passed_its_gate() -> None:
    frame = plots.gate_frame(table())
    assert frame.passed[frame.task.isin(plots.by_task(table()))].all()


def test_a_balancing_loss_does_what_capacity_does() -> None:
    """What the page says of the claim about capacity."""
    rows = table().query(
        "stage == 'final' and chosen and arm == 'unlimited-rounding-mixture-bound' and num_experts > 2"
    )
    balanced = rows.groupby("task").load_balancing.first() > 0
    assert balanced.sum() > len(balanced) / 2
    assert not balanced["flights"]


def test_limits_say_what_a_capacity_costs_on_flights() -> None:
    (claim,) = (each for each in verdicts(table()) if each.claim.name == "capacity")
    (flights,) = (each for each in claim.tasks if each.task == "flights")
    low, high = flights.interval
    limits = " ".join((NOTEBOOKS / "limits.md").read_text(encoding="utf-8").split())
    assert f"is {-flights.worst.mean:.3f} nats [{-high:.3f}, {-low:.3f}] a row behind" in limits


def test_scores_are_0_for_a_frozen_router_and_1_for_the_better_line() -> None:
    for rows in plots.by_task(table()).values():
        lines = [plots.score(rows, line) for line in plots.LINES]
        assert plots.score(rows, plots.FROZEN) == 0.0
        assert max(value for value in lines if value == value) == pytest.approx(1.0)


def test_pictures_are_drawn() -> None:
    pairs = [("one", "skip", "switch"), ("two", "skip", "no such arm")]
    for figure in (
        plots.gates(table()),
        plots.overview(table()),
        plots.differences(table(), pairs, "title"),
        plots.equal_compute(table()),
    ):
        assert isinstance(figure, matplotlib.figure.Figure)
        figure.canvas.draw()
        matplotlib.pyplot.close(figure)
