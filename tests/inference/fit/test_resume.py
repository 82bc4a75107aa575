"""A fit that goes on from a checkpoint is the one that was never interrupted, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from inference import language_task
from inference.language_task import Language
from inference.registry.builtin import REGISTRY
from inference.runs.checkpoint import load_checkpoint
from inference.runs.run_folder import RunFolder, SeedFolder
from inference.tasks import Digits, ModelOptions, Piecewise, Task
from inference.training.interrupts import StopSignals
from inference.training.keeper import FitKeeper
from inference.training.run import Fit, FitOptions, run_fit
from models.text import Text, text_data
from tests.inference.runs.test_checkpoint import same


class StopAt:
    """Ends the process, as far as the fit can tell, after a step."""

    def __init__(self, keeper: FitKeeper, step: int) -> None:
        self.keeper, self.step = keeper, step

    def resume(self, fit: Fit) -> None:
        self.keeper.resume(fit)

    def keep(self, fit: Fit, row: dict) -> None:
        self.keeper.keep(fit, row)
        if fit.step_count == self.step:
            raise KeyboardInterrupt


def run_and_resume(
    task: Task, options: FitOptions, folder: Path, every: int, stops: list[int]
) -> tuple[dict, SeedFolder]:
    """:returns: the metrics at the end, and the folder."""
    seed_folder = RunFolder(folder).seed(3)
    for stop in [*stops, None]:
        with FitKeeper(seed_folder, {"seed": 3}, every, StopSignals()) as keeper:
            if stop is None:
                return run_fit(task, options, 3, keeper=keeper).metrics, seed_folder
            with pytest.raises(KeyboardInterrupt):
                run_fit(task, options, 3, keeper=StopAt(keeper, stop))
    raise AssertionError


def timeless(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    return table.drop(columns=[name for name in table if "second" in name])


def check(task: Task, options: FitOptions, folder: Path, every: int, stops: list[int]) -> None:
    whole_metrics, whole = run_and_resume(task, options, folder / "whole", every, [])
    metrics, resumed = run_and_resume(task, options, folder / "resumed", every, stops)
    for name, value in whole_metrics.items():
        assert "seconds" in name or metrics[name] == value
    states = []
    for seed_folder in (whole, resumed):
        _, state = load_checkpoint(seed_folder.checkpoint)
        states.append({key: value for key, value in state.items() if key not in ("wall", "cpu")})
    assert same(*states)
    for one, other in ((whole.metrics, resumed.metrics), (whole.epochs, resumed.epochs)):
        pd.testing.assert_frame_equal(timeless(one), timeless(other), check_exact=True)


ASSIGNMENTS = [(assignment, "weighted", "decaying", 1) for assignment in REGISTRY.procedures]
BASELINES = [("gumbel-matching", "weighted", baseline, 2) for baseline in REGISTRY.baselines if baseline != "decaying"]
OBJECTIVES = [("skip", "balanced", "decaying", 2), ("gumbel-matching", "balanced", "decaying", 1)]


@pytest.mark.parametrize(("assignment", "estimator", "baseline", "num_layers"), ASSIGNMENTS + BASELINES + OBJECTIVES)
def test_digits_across_epochs(tmp_path: Path, assignment: str, estimator: str, baseline: str, num_layers: int) -> None:
    """Three steps an epoch, a checkpoint at every second: stopped in the first epoch, and in the third."""
    model = ModelOptions(assignment, baseline, num_layers=num_layers, hidden_features=8)
    particles = 2 if baseline == "leave-one-out" else 1
    options = FitOptions(3, 100, 1e-2, model, estimator, num_particles=particles, sample=True)
    task = Digits()
    task.train, task.validation, task.test = ((x[:240], y[:240]) for x, y in (task.train, task.validation, task.test))
    check(task, options, tmp_path, every=2, stops=[2, 7])


@pytest.mark.parametrize(
    ("model", "estimator"),
    [
        (ModelOptions("dependent-rounding", num_layers=2, num_selected=2, experts_in="last"), "mixture"),
        (ModelOptions("sampled-gate", "none", experts_in="last", router="hidden"), None),
    ],
)
def test_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ModelOptions, estimator: str | None) -> None:
    """Several experts in the last block, a baseline in the first; and a rule that draws."""
    whole = text_data()
    piece = Text(whole.train[:1500], whole.validation[:300], whole.test[:300])
    monkeypatch.setattr(language_task, "text_data", lambda: piece)
    options = FitOptions(2, 2, 6e-3, replace(model, hidden_features=8), estimator)
    check(Language(), options, tmp_path, every=2, stops=[3, 8])


@pytest.mark.parametrize("stops", [[1], [4, 9, 9, 10, 11]])
def test_piecewise(tmp_path: Path, stops: list[int]) -> None:
    """Stopped before the first checkpoint; and several times, also where steps behind the checkpoint are done again."""
    check(Piecewise(num_datapoints=50), FitOptions(3, 12, 0.1), tmp_path, every=4, stops=stops)


def test_the_order_of_the_data_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: here the stream starts a new pass instead of going on."""
    monkeypatch.setattr("inference.training.batches.Minibatches.load_state_dict", lambda self, state: None)
    with pytest.raises(AssertionError):
        check(Piecewise(num_datapoints=50), FitOptions(3, 12, 0.1), tmp_path, every=4, stops=[6])
