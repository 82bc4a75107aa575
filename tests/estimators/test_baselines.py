"""Baselines as objects: the rule that keeps them unbiased, what they count, what they remember, what they refuse."""

import pytest
import torch
from torch import Tensor

from prob_moe.estimators import Baseline, DecayingAverage, LeaveOneOut, Network, NoBaseline, Predicted, Sum
from prob_moe.estimators.site_baselines import SiteBaselines
from prob_moe.testing import check_baseline

X = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3).cos()
BOTH = ["router", "balanced"]


def network(per: str = "datapoint") -> Network:
    linear = torch.nn.Linear(3, 1).double()
    squeezed = lambda x: linear(x).squeeze(-1)  # noqa: E731
    if per == "group":
        return Network(lambda x: squeezed(x).mean(-1), X, per="group")
    return Network(squeezed, X)


class OwnMinimum(Baseline):
    """A user's own: the smallest cost of the other particles."""

    needs_particles = True

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        others = [torch.cat([cost[:m], cost[m + 1 :]]).amin(0) for m in range(len(cost))]
        return torch.stack(others), cost.new_zeros(())


class Structural:
    """A user's own that inherits nothing."""

    needs_particles = False

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return cost.new_full((), -2.0), cost.new_zeros(())

    def update(self, cost: Tensor, weight: Tensor, present: Tensor) -> None: ...

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


@pytest.mark.parametrize(
    ("baseline", "objectives"),
    [
        (NoBaseline(), BOTH),
        (DecayingAverage(0.5), BOTH),
        (LeaveOneOut(), BOTH),
        (Predicted(torch.tensor(-3.0)), BOTH),
        (network(), BOTH),
        (network("group"), ["balanced"]),
        (Sum(DecayingAverage(), network(), LeaveOneOut()), BOTH),
        (OwnMinimum(), BOTH),
        (Structural(), BOTH),
    ],
    ids=lambda value: type(value).__name__,
)
def test_those_that_keep_the_rule(baseline: Baseline, objectives: list[str]) -> None:
    assert check_baseline(baseline) == objectives


class OtherDatapoints(Baseline):
    """The mean over the other datapoints of the same particle: biased at n = k = 2, c = 1, where z_2 = 1 - z_1."""

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if cost.dim() < present.dim():
            return cost.new_zeros(()), cost.new_zeros(())
        weighted, others = weight * cost, (present.sum(-1, keepdim=True) - 1).clamp(min=1)
        return (weighted.sum(-1, keepdim=True) - weighted) / others, cost.new_zeros(())


class OwnParticle(Baseline):
    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return (weight * cost).mean(0), cost.new_zeros(())


class SeesThisStep(DecayingAverage):
    """The running mean with the step that it is for."""

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        ahead = DecayingAverage(self.decay)
        ahead.load_state_dict(self.state_dict())
        ahead.update(cost, weight, present)
        return DecayingAverage.value(ahead, cost, weight, present)


class DroppedOnly(Baseline):
    """Knows no cost, but who was dropped: the assignment."""

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return (weight == 0).to(cost).sum((-2, -1), keepdim=True), cost.new_zeros(())


class Counts(Baseline):
    """Moves when it is asked."""

    count = 0

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        self.count += 1
        return cost.new_tensor(float(self.count)), cost.new_zeros(())


class Forgets(DecayingAverage):
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict({})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (OtherDatapoints(), "OtherDatapoints breaks the rule of baselines in the router objective, step 1: the base"),
        (OwnParticle(), "breaks the rule of baselines in the router objective"),
        (SeesThisStep(), "breaks the rule of baselines in the router objective, step 1"),
        (DroppedOnly(), "breaks the rule of baselines in the router objective"),
        (Counts(), "changes when asked twice"),
        (Forgets(), "forgets by its state_dict"),
        (Sum(DecayingAverage(), OwnParticle()), "Sum breaks the rule"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Baseline) else "",
)
def test_those_that_break_it(broken: Baseline, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_baseline(broken)


def test_the_innocent_looking_one_is_biased() -> None:
    """n = k = 2, c = 1: two outcomes, with P(identity) in closed form. The check's verdict, by enumeration."""
    from prob_moe.distributions import GumbelMatching

    logits = torch.tensor([[0.3, -0.2], [0.1, 0.8]], dtype=torch.float64, requires_grad=True)
    f = torch.tensor([[-1.0, -4.0], [-2.0, -7.0]], dtype=torch.float64)
    routing = GumbelMatching(logits, capacity=1)
    values = routing.enumerate_support()
    log_prob = routing.log_prob(values)
    cost = f.expand(len(values), 2, 2).gather(-1, values.unsqueeze(-1)).squeeze(-1)
    exact = torch.autograd.grad((log_prob.exp() * cost.sum(-1)).sum(), logits, retain_graph=True)[0]

    def expected(baseline: Tensor) -> Tensor:
        # Every datapoint's cost meets the score minus its baseline.
        surrogate = (log_prob.exp().detach() * (cost - baseline).sum(-1) * log_prob).sum()
        return torch.autograd.grad(surrogate, logits, retain_graph=True)[0]

    torch.testing.assert_close(expected(torch.tensor([-2.0, 1.0])), exact)
    assert (expected(cost.flip(-1)) - exact).abs().max() > 0.1


@pytest.mark.parametrize("per_datapoint", [True, False])
def test_means_count_present_datapoints(per_datapoint: bool) -> None:
    present = torch.tensor([[True, True, True, False], [True, False, False, False]]).expand(3, 2, 4)
    cost = torch.where(present, -2.0, 0.0)
    weight = present.to(cost)
    if not per_datapoint:
        cost, weight = cost.sum(-1), torch.ones(3, 2)
    average = DecayingAverage()
    for _ in range(2):
        average.update(cost, weight, present)
    value = average.value(cost, weight, present)[0].expand(cost.shape)
    expected = torch.full_like(cost, -2.0) if per_datapoint else cost
    torch.testing.assert_close(value, expected)


def test_an_empty_batch_element_keeps_its_mean() -> None:
    average = DecayingAverage(0.5)
    everybody, nobody = torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([[[True] * 3, [False] * 3]])
    average.update(torch.full((1, 2), -3.0), torch.ones(1, 2), everybody)
    average.update(torch.tensor([[-6.0, 0.0]]), torch.ones(1, 2), nobody)
    value = average.value(torch.zeros(1, 2), torch.ones(1, 2), everybody)[0]
    torch.testing.assert_close(value, 3 * torch.tensor([[-(0.25 * 1 + 0.5 * 2) / 0.75, -1.0]]))


def test_a_network_learns_the_cost_of_a_group() -> None:
    """Padding, NaN for one, reaches neither the value nor a gradient."""
    linear = torch.nn.Linear(3, 1)
    x = X.float().clone()
    present = torch.ones(2, 2, 4, dtype=torch.bool)
    present[:, 1, 2:] = False
    x[1, 2:] = torch.nan
    baseline = Network(lambda x: linear(x).squeeze(-1), x)
    value, loss = baseline.value(torch.full((2, 2), -3.0), torch.ones(2, 2), present)
    clean = torch.where(present[0].unsqueeze(-1), x, 0.0)
    torch.testing.assert_close(value, (linear(clean).squeeze(-1) * present).sum(-1))
    loss.backward()
    assert linear.weight.grad is not None
    assert bool(linear.weight.grad.isfinite().all())
    torch.testing.assert_close(loss, ((-3.0 - value) ** 2 / present.sum(-1)).sum())


def test_what_a_site_remembers() -> None:
    present = torch.ones(1, 4, dtype=torch.bool)
    cost, weight = torch.full((1, 4), -2.0), torch.ones(1, 4)
    for given in (DecayingAverage(), {"use_decaying_avg_baseline": True}):
        sites = SiteBaselines()
        assert float(sites("z", given, cost, weight, present)[0].sum()) == 0
        state = sites.state_dict()
        for fresh in (DecayingAverage(), {"use_decaying_avg_baseline": True}):
            other = SiteBaselines()
            other.load_state_dict(state)
            assert other.state_dict() == state  # also before the site runs
            torch.testing.assert_close(other("z", fresh, cost, weight, present)[0], cost)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("decaying", r"site 'z': baseline must be a Baseline object, .* got 'decaying'"),
        (LeaveOneOut(), "site 'z': a LeaveOneOut baseline needs num_particles >= 2, got 1"),
        (OwnMinimum(), "site 'z': a OwnMinimum baseline needs num_particles >= 2, got 1"),
        (Predicted(torch.zeros(()), per="group"), "site 'z': the baseline predicts one number per group"),
        (Predicted(torch.zeros(3)), r"site 'z': .* shape \(3,\) but must broadcast to one number per datapoint"),
    ],
)
def test_refusals(given: object, message: str) -> None:
    present = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        SiteBaselines()("z", given, torch.zeros(1, 4), torch.ones(1, 4), present)


def test_refusals_of_construction() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        DecayingAverage(1.0)
    with pytest.raises(ValueError, match="per must be 'datapoint' or 'group', got 'batch'"):
        Predicted(torch.zeros(()), per="batch")
    with pytest.raises(ValueError, match="must come last in a Sum"):
        Sum(LeaveOneOut(), DecayingAverage())
