"""No verdict on a bias where, by their law, the importance weights have no variance."""

import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from inference.cli import app
from inference.gradients.comparison import compare
from inference.gradients.estimators import estimators, routing_estimator
from inference.gradients.problem import Setting
from inference.gradients.tables import WITHHELD, base_tables, settings_table
from inference.show.routing_view import RoutingView
from prob_moe.distributions import AssignmentDistribution, CapacitySkip, GumbelMatching


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Two cells with c = 1 and one with c = 2."""
    rows = [estimator for estimator in estimators() if estimator.baseline == "decaying"]
    settings = [("base", Setting(n=3, k=3)), ("n", Setting(n=2, k=3)), ("capacity_factor", Setting(3, 3, 2.0))]
    return compare(settings, rows, num_samples=100)


def test_every_cell_of_weighted_gumbel_matching_at_capacity_1_is_withheld(frame: pd.DataFrame) -> None:
    matching = frame[(frame.objective == "router") & ~frame.biased & frame.estimator.str.contains("atching")]
    assert set(matching.capacity) == {1, 2}
    assert (matching.withheld == (matching.capacity == 1)).all()
    assert (matching.weight_pareto_k[matching.withheld] == 0.5).all()
    # Nothing else is: neither bounded weights, nor twins without any, nor the balanced objective.
    others = frame.drop(matching.index)
    assert not others.withheld.any()
    assert (others.weight_pareto_k == -math.inf).all()


def test_the_tables_say_withheld_in_the_place_of_a_number(frame: pd.DataFrame) -> None:
    router = base_tables(frame)[0]
    assert [str(cell) for cell in router.columns[1].cells].count(WITHHELD) == 1
    assert "0.5" in set(router.columns[-1].cells)
    console = Console(width=80, file=io.StringIO())
    console.print(router)
    text = console.file.getvalue()
    assert "…" not in text
    assert {"ratio", "k"} <= set(text.split())
    (column,) = [column for column in settings_table(frame).columns if column.header == WITHHELD]
    cells = list(column.cells)
    assert all("atching" in str(cell) for cell in cells[:2])
    assert cells[2] == ""


@pytest.mark.slow
def test_the_command_writes_the_law(tmp_path: Path) -> None:
    grid = ["--n", "3", "--k", "3", "--capacity-factor", "1", "--sharpness", "1", "--imbalance", "1"]
    arguments = ["gradients", *grid, "--num-samples", "100", "--json", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["gradients"]
    assert {row["weight_pareto_k"] for row in rows if row["withheld"]} == {0.5}
    assert pd.read_csv(tmp_path / "gradients.csv").withheld.any()


@pytest.mark.parametrize(
    ("kind", "capacity", "law", "told"),
    [(GumbelMatching, 1, 0.5, "by the law 0.5: infinite variance"), (GumbelMatching, 2, 1 / 3, "by the law 0.33)")],
)
def test_show_tells_the_law(kind: type[AssignmentDistribution], capacity: int, law: float, told: str) -> None:
    first, second = CapacitySkip(torch.zeros(3, 3), capacity=1), kind(torch.zeros(3, 3), capacity=capacity)
    draws = {"first": (first, first.sample()), "second": (second, second.sample())}
    view = RoutingView(torch.zeros(3, 1), torch.zeros(3), [], draws, torch.ones(3).numpy(), [])
    assert view.pareto_k_law == pytest.approx(law)
    assert told in view.weights_in_words


def test_an_estimator_without_a_law_is_not_withheld_for_it() -> None:
    class Lawless(GumbelMatching):
        weight_pareto_k = None

    estimator = routing_estimator("lawless", Lawless, "none")
    found = compare([("base", Setting(n=3, k=3))], [estimator], num_samples=100)
    assert found.weight_pareto_k.isna().all()
