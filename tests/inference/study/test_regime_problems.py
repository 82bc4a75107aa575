"""Tasks in which routing matters: the same data for every arm, oracles that are right, settings that are checked."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inference.study import regime_problems
from inference.study.regime_settings import DomainsRun, NoisyTagRun, PlantedRun, RotatedRun, TwinsRun
from inference.study.settings import Run, SeedsRun
from inference.study.training import problem_of, train
from models.domains import DomainsData, domains_data
from models.tables import TableData

ARMS = (
    "oracle",
    "hash",
    "exact-marginal",
    "switch",
    "dependent-rounding-guided-bound",
    "dependent-rounding-mixture-bound",
)


def tiny_planted(seed: int) -> TableData:
    """A table that needs no package, whose columns are those of diamonds."""
    torch.manual_seed(seed)
    train, validation, test = ((torch.randn(n, 26), torch.randn(n)) for n in (300, 30, 40))
    return TableData(train, validation, test, torch.arange(30), torch.arange(40))


def tiny_domains(seed: int) -> DomainsData:
    return domains_data(seed, num_train=200, num_held_out=100)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regime_problems, "planted_data", tiny_planted)
    monkeypatch.setattr(regime_problems, "planted_regime", lambda x: 2 * (x[..., 1] > 0).long() + (x[..., 2] > 0))
    monkeypatch.setattr(regime_problems, "domains_data", tiny_domains)


SIZE = {"num_seeds": 2, "num_steps": 1}
RUNS: tuple[SeedsRun, ...] = (
    TwinsRun("skip", 0.1, 0.0, **SIZE),
    NoisyTagRun("skip", 0.1, 0.0, **SIZE),
    RotatedRun("skip", 0.1, 0.0, **SIZE),
    PlantedRun("skip", 0.1, 0.0, **SIZE),
    DomainsRun("skip", 0.1, 0.0, **SIZE),
)
OF_EACH_TASK = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.task)


@OF_EACH_TASK
def test_shapes_are_those_of_a_stack(run: SeedsRun) -> None:
    problem = problem_of(run)
    num_experts = problem.mixture.experts.num_experts
    for x, y in (problem.train, problem.validation, problem.test):
        assert x.shape[:-1] == y.shape
        assert len(y) == 2
        assert not x[0].equal(x[1])
    x, y = (values[:, :7] for values in problem.train)
    assert problem.posterior()(x, y).shape == (2, 7, num_experts)
    assert problem.cost_baseline()(x).shape == (2, 7)
    assert problem.identity(problem.train[0]).unique().numel() >= 10
    assert problem.oracle is not None
    experts = problem.oracle(problem.train[0])
    assert experts.shape == problem.train[1].shape
    assert experts.unique().tolist() == list(range(num_experts))


@OF_EACH_TASK
def test_data_and_start_are_the_same_for_every_arm_and_part(run: SeedsRun) -> None:
    first = problem_of(run)
    other = problem_of(replace(run, arm="oracle", learning_rate=0.2, load_balancing=1.0, judged_on="validation"))
    for mine, theirs in zip((first.train, first.validation, first.test), (other.train, other.validation, other.test)):
        assert all(map(torch.equal, mine, theirs))
    assert all(map(torch.equal, first.mixture.parameters(), other.mixture.parameters()))
    assert other.held_out is other.validation


@OF_EACH_TASK
def test_parts_are_disjoint(run: SeedsRun) -> None:
    problem = problem_of(run)
    for seed in range(2):
        # Digits in regimes show an image with several tags.
        rows = [{*map(tuple, x[seed, :, :64].tolist())} for x, _ in (problem.train, problem.validation, problem.test)]
        if not isinstance(run, DomainsRun):  # contexts come again, see the test of their data
            assert not rows[0] & rows[1]
            assert not rows[0] & rows[2]
            assert not rows[1] & rows[2]


@OF_EACH_TASK
@pytest.mark.parametrize("arm", ARMS)
def test_arms_take_a_step(run: SeedsRun, arm: str) -> None:
    record = train(replace(run, arm=arm, load_balancing=0.1))
    assert record.stopped_at is None
    assert torch.tensor(record.metrics["nll"]).isfinite().all()
    assert len(record.metrics["nll"]) == 2


def test_twins_are_one_line_and_the_others_are_not() -> None:
    x, y = problem_of(TwinsRun("skip", 0.1, 0.0, num_seeds=64, num_datapoints=2000)).train

    def left_over(first: int, past: int) -> float:
        """Mean square around one line through pieces, in units of the noise's."""
        found = []
        for place, value in zip(x.squeeze(-1).double(), y.double()):
            rows = (place >= first / 4) & (place < past / 4)
            design = torch.stack([place[rows], torch.ones(int(rows.sum()), dtype=torch.double)], -1)
            line = torch.linalg.lstsq(design, value[rows].unsqueeze(-1)).solution
            found.append((design @ line - value[rows].unsqueeze(-1)).square().mean().item() / 0.01)
        return sum(found) / len(found)

    assert left_over(0, 2) == pytest.approx(1, abs=0.02)
    assert left_over(1, 3) > 2
    assert left_over(2, 4) > 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwinsRun("skip", 0.1, 0.0, num_pieces=2), "num_pieces must be at least 3, got 2"),
        (lambda: NoisyTagRun("skip", 0.1, 0.0, tag_noise=1.0), "tag_noise must be a probability below 1, got 1.0"),
        (lambda: RotatedRun("skip", 0.1, 0.0, batch_size=0), "batch_size must be a positive int, got 0"),
        (lambda: PlantedRun("skip", 0.1, 0.0, num_experts=3), "num_experts must be at least 4, got 3"),
        (lambda: PlantedRun("skip", 0.1, 0.0, table="flights"), "table must be diamonds, got 'flights'"),
        (lambda: DomainsRun("skip", 0.1, 0.0, num_experts=3), "num_experts must be at least 4, got 3"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Run], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_differ() -> None:
    assert len({run.label for run in (*RUNS, RotatedRun("skip", 0.1, 0.0, hidden_router=False))}) == len(RUNS) + 1
    assert not RUNS[0].label.endswith(TwinsRun.noun)
