"""Models as they would be served: by one, two and all of their experts."""

from dataclasses import replace

import pytest
import torch
from pyro.distributions import Normal

from inference.study.arms import all_arms
from inference.study.cache import Record
from inference.study.learners import GatedLearner
from inference.study.problems import Problem, pieces_problem
from inference.study.report import named_rows, served_cells, served_reference
from inference.study.serving import measure_serving
from inference.study.serving_tables import by_serving, ruined_rows
from inference.study.settings import PiecesRun, Run, TableRun
from inference.study.training import train

ARMS = all_arms()


def problem(name: str, **settings: object) -> Problem:
    given = pieces_problem(PiecesRun(name, 0.1, 0.0, num_seeds=2, num_pieces=4))
    return replace(given, **({"robust": None} | settings))


def test_a_mixture_is_served_by_its_favourites() -> None:
    given = problem("exact-marginal")
    learner = ARMS["exact-marginal"].build(given)
    x, y = given.test
    measures, rows = measure_serving(learner, given)
    assert set(measures) == {f"{name}, {way}" for name in ("nll", "error") for way in ("1", "2", "all")}
    assert rows == {}
    with torch.no_grad():
        torch.testing.assert_close(measures["nll, all"], -learner.log_predictive(x, y).mean(-1))
        torch.testing.assert_close(measures["error, 1"], given.error(learner.serve(x), y))
        assert not torch.allclose(measures["nll, 1"], measures["nll, 2"])


@pytest.mark.parametrize(("name", "own"), [("switch", "1"), ("top-2-gates", "2"), ("one-expert", "1")])
def test_a_model_with_one_output_is_served_by_the_gates_of_its_rule(name: str, own: str) -> None:
    given = problem(name)
    learner = ARMS[name].build(given)
    measures, _ = measure_serving(learner, given)
    with torch.no_grad():
        torch.testing.assert_close(measures[f"nll, {own}"], -learner.log_predictive(*given.test).mean(-1))
    assert "nll, as trained" not in measures
    if isinstance(learner, GatedLearner):
        x, y = given.test
        mixture = given.mixture
        with torch.no_grad():  # the gates of all experts are the router's probabilities
            out = (mixture.router(x).softmax(-1).unsqueeze(-1) * mixture.experts.dense(x)).sum(-2)
            torch.testing.assert_close(measures["nll, all"], -mixture.likelihood(out).log_prob(y).mean(-1))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_judged_by_finite_numbers_in_whatever_way_it_serves(arm: str) -> None:
    if not ARMS[arm].is_for(run := PiecesRun(arm, 0.1, 0.0, num_seeds=2, num_steps=1)):
        return
    metrics = train(run).metrics
    assert any(name.startswith("robust, ") for name in metrics)
    for name, values in metrics.items():
        assert torch.tensor(values).isfinite().all(), name


@pytest.mark.parametrize("name", ["smear", "hash", "soft-moe"])
def test_other_models_are_served_in_their_own_way_only(name: str) -> None:
    given = problem(name)
    measures, _ = measure_serving(ARMS[name].build(given), given)
    assert set(measures) == {"nll, as trained", "error, as trained"}


def test_a_single_row_ruins_the_score_but_not_the_robust_one_and_is_named() -> None:
    given = problem("switch", robust=10.0)
    x, y = given.test
    y = y.clone()
    y[1, 7] = 50.0
    rows = torch.arange(1000).repeat(2, 1) + 100
    given = replace(given, test=(x, y), rows=rows)
    measures, named = measure_serving(ARMS["switch"].build(given), given)
    law = Normal(0.0, given.mixture.likelihood(torch.zeros(1, 1)).stddev)
    assert measures["nll, 1"][1] > -law.log_prob(torch.tensor(45.0)).item() / 1000
    assert (measures["robust, 1"] <= 10).all()
    assert measures["beyond, 1"][1] >= 1
    assert named["1"][1][0][0] == 107
    assert named["1"][1][0][1] > 1e4


def records() -> tuple[list[Run], list[Record]]:
    """Two arms at two learning rates, of which the second is better on every seed."""
    runs: list[Run] = []
    found = []
    for arm, shift in (("unlimited-rounding-mixture-bound", 0.0), ("switch", 1.0)):
        for rate, worse in ((0.1, 2.0), (0.01, 0.0)):
            runs.append(TableRun(arm, rate, 0.0, num_seeds=4))
            costs = [seed + shift + worse for seed in (0.0, 0.1, 0.2, 0.3)]
            metrics = {f"{name}, {way}": costs for name in ("nll", "robust", "beyond", "error") for way in ("1", "2")}
            metrics["nll, 2"] = [1e6] * 4
            found.append(
                Record({}, {"nll": costs, "error": costs, **metrics}, 0.0, rows={"2": [[[7, 99.0]]] + [[]] * 3})
            )
    return runs, found


def test_tables_have_every_setting_and_the_best_one_with_paired_differences() -> None:
    table = by_serving(*records())
    best = table[table["view"] == "best setting"].set_index(["arm", "served"])
    assert len(table) == 2 * 2 * 3
    ours, other = best.loc["unlimited-rounding-mixture-bound", "2"], best.loc["switch", "2"]
    assert ours.learning_rate == other.learning_rate == 0.01
    assert ours.robust == pytest.approx(0.15)
    assert ours.robust_se == pytest.approx(torch.tensor([0.0, 0.1, 0.2, 0.3]).std().item() / 2)
    assert ours.nll == 1e6
    assert ours.behind == 0
    assert other.behind == pytest.approx(1.0)
    assert other.behind_se == pytest.approx(0.0, abs=1e-12)
    assert {*ours.index} >= {"table", "num_steps", "batch_size", "capacity_factor", "num_experts"}
    assert served_reference(table) == ("unlimited-rounding-mixture-bound", "2")
    header, body = served_cells(table, behind=True)
    assert header == ["trained with", "served by 1", "served by 2"]
    assert body[1] == ["Switch", "1.150 ± 0.065 (+1.000 ± 0.000)", "1.150 ± 0.065 (+1.000 ± 0.000)"]


def test_rows_are_named_once() -> None:
    rows = ruined_rows(*records())
    assert set(rows.row) == {7}
    assert set(rows.seed) == {0}
    assert named_rows(rows) == ["* diamonds: rows of the table that cost some model most: 7 (99 nats)"]
