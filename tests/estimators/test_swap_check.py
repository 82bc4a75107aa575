"""Estimators that go datapoint by datapoint refuse models in which datapoints meet elsewhere than in the capacity."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from models.stacked import StackedMixture
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.estimators.sites import per_datapoint
from prob_moe.estimators.surrogate_elbo import SurrogateELBO
from prob_moe.estimators.swaps import swap_two
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

N, K, D = 8, 3, 4


def normal(out: Tensor) -> dist.TorchDistribution:
    return dist.Normal(out.squeeze(-1), 0.5)


def experts(out: int, d: int = D) -> BatchedExperts:
    return BatchedExperts(K, d, None, out, dtype=torch.float64)


def mixture(m: int | None = None, procedure: Any = CapacitySkip, **kwargs: Any) -> MixtureOfExperts:
    router = nn.Linear(D, K).double()
    return MixtureOfExperts(
        router, experts(1), normal, assignment=procedure, capacity_factor=1.0, num_selected=m, **kwargs
    )


def data(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, N, D, dtype=torch.float64), torch.randn(*batch, N, dtype=torch.float64)


class BetweenExperts(nn.Module):
    """Two layers of experts with something between."""

    def __init__(self, between: Callable[[Tensor], Tensor], procedure: Any = CapacitySkip) -> None:
        super().__init__()
        self.between = between
        self.first, self.second = experts(D), mixture(None, procedure)
        self.router = nn.Linear(D, K).double()
        self.procedure = procedure

    def forward(self, x: Tensor, y: Tensor) -> None:
        z = pyro.sample("first", self.procedure(self.router(x), capacity=N))
        self.second(self.between(self.first(x, z, capacity=N)), y)


def attention(h: Tensor) -> Tensor:
    return h + nn.functional.scaled_dot_product_attention(h, h, h)


def normalised_likelihood(logits: Tensor) -> None:
    """The datapoints share one budget of probability."""
    z = pyro.sample("z", CapacitySkip(logits, capacity=N))
    values = z * torch.linspace(0, 1, N, dtype=torch.float64)
    with pyro.plate("data", N):
        pyro.factor("y", values - values.logsumexp(0))


REFUSED = {
    "attention": lambda: (BetweenExperts(attention), *data()),
    "batch norm": lambda: (BetweenExperts(nn.BatchNorm1d(D).double()), *data()),
    "a normalised likelihood": lambda: (normalised_likelihood, torch.zeros(N, K, dtype=torch.float64)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_datapoints_that_meet_are_refused(case: str) -> None:
    model, *args = REFUSED[case]()
    name = "z" if model is normalised_likelihood else "first"
    message = (
        rf"assignment site '{name}': .* swap their experts, .* TraceRouting_ELBO is biased; use TraceBalanced_ELBO"
    )
    for method in (TraceRouting_ELBO().loss, TraceRouting_ELBO().differentiable_loss):
        with pytest.raises(ValueError, match=message):
            method(model, None, *args)
    TraceBalanced_ELBO().loss(model, None, *args)
    with pyro.validation_enabled(False):
        TraceRouting_ELBO().loss(model, None, *args)


def test_experts_that_normalise_over_their_batch_are_refused_in_the_mixture_bound() -> None:
    model, (x, y) = mixture(2, IndependentRouting), data()
    model.experts.register_forward_hook(lambda module, inputs, out: out - out.mean(-2, keepdim=True))
    with pytest.raises(ValueError, match=r"site 'y' changes, .* TraceMixture_ELBO is biased; use TraceBalanced_ELBO"):
        TraceMixture_ELBO().loss(model, None, x, y)


def stacked() -> StackedMixture:
    router = nn.Linear(D, K).double()
    return StackedMixture(router, experts(D), mixture(), assignment=CapacitySkip, capacity_factor=1.0)


def in_batches(x: Tensor, y: Tensor, mask: Tensor | None = None) -> None:
    with pyro.plate("batch", len(x), dim=-2):
        pyro.module("mixture", MIXTURE)(x, y, mask)


MIXTURE = mixture()
MASK = torch.tensor([[True] * (N - 2) + [False] * 2, [True] * N])


def subsampled(x: Tensor, y: Tensor) -> None:
    """Rows drawn by Pyro: the runs of the check see the rows of the step."""
    with pyro.plate("rows", N, subsample_size=5) as rows:
        pass
    z = pyro.sample("z", CapacitySkip(x[rows, :K], capacity=2))
    with pyro.plate("data", N, subsample=rows), pyro.poutine.mask(mask=z >= 0):
        pyro.sample("y", dist.Normal(z.double() * x[rows, 0], 1.0), obs=y[rows])


def own_dropout(x: Tensor, y: Tensor) -> None:
    """What is drawn outside of sites is the same in both runs."""
    z = pyro.sample("z", CapacitySkip(x[:, :K], capacity=3))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(nn.functional.dropout(z.double(), 0.5), 1.0), obs=y)


ACCEPTED = {
    "stacked": lambda: (TraceRouting_ELBO(), stacked(), *data()),
    "layer norm between": lambda: (TraceRouting_ELBO(), BetweenExperts(nn.LayerNorm(D).double()), *data()),
    "matchings": lambda: (TraceRouting_ELBO(), BetweenExperts(lambda h: h.tanh(), GumbelMatching), *data()),
    "batches and masks": lambda: (TraceRouting_ELBO(), in_batches, *data(2), MASK),
    "one mask": lambda: (TraceRouting_ELBO(), mixture(), *data(), MASK[0]),
    "subsampling": lambda: (TraceRouting_ELBO(), subsampled, *data()),
    "dropout": lambda: (TraceRouting_ELBO(), own_dropout, *data()),
    "particles": lambda: (TraceRouting_ELBO(num_particles=3, max_plate_nesting=1), mixture(), *data()),
    "vectorised": lambda: (
        TraceRouting_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        *(mixture(), *data()),
    ),
    "sets, independent": lambda: (TraceMixture_ELBO(), mixture(2, IndependentRouting), *data()),
    "sets, skip": lambda: (TraceMixture_ELBO(), mixture(2, CapacitySkip), *data()),
    "sets, rounding": lambda: (TraceMixture_ELBO(), mixture(2, DependentRounding), *data()),
    "sets in batches": lambda: (
        TraceMixture_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2),
        *(in_batches_of_sets, *data(2), MASK),
    ),
}


def in_batches_of_sets(x: Tensor, y: Tensor, mask: Tensor) -> None:
    with pyro.plate("batch", len(x), dim=-2):
        SETS(x, y, mask)


SETS = mixture(2, DependentRounding)


@pytest.mark.parametrize("case", ACCEPTED)
def test_datapoints_that_meet_in_the_capacity_only_pass(case: str) -> None:
    elbo, model, *args = ACCEPTED[case]()
    for _ in range(3):  # every site gets its turn
        elbo.loss(model, None, *args)
    assert all(settled for settled in elbo._capacity_only._settled.values())


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_check_changes_nothing(case: str) -> None:
    """Not a draw, a gradient, a parameter or a buffer."""
    results = []
    for validate in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        elbo, model, *args = ACCEPTED[case]()
        parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
        with pyro.validation_enabled(validate):
            losses = [elbo.differentiable_loss(model, None, *args) for _ in range(2)]
        gradients = torch.autograd.grad(sum(losses), parameters) if parameters else ()
        stored = dict(pyro.get_param_store().items())
        results.append((losses, gradients, torch.rand(3), stored))
    torch.testing.assert_close(*results, rtol=0, atol=0)


class Counting(nn.Module):
    """A layer with state: batch statistics of what comes before the experts, and a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixture, self.calls = nn.BatchNorm1d(D).double(), mixture(), 0

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.calls += 1
        pyro.factor("noise", torch.rand(()))
        self.mixture(self.norm(x), y)


def test_state_and_cost() -> None:
    """One step moves the layers' state by one step, and the models runs twice more, once."""
    model, (x, y), runs = Counting(), data(), []
    model.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    elbo = TraceRouting_ELBO()
    loss = elbo.differentiable_loss(model, None, x, y)
    assert (model.calls, int(model.norm.num_batches_tracked), len(runs)) == (1, 1, 3)
    torch.testing.assert_close(model.norm.running_mean, 0.1 * x.mean(0))
    loss.backward()
    handled = pyro.poutine.scale(model, 2.0)  # made anew in every step, but the same model
    elbo.differentiable_loss(handled, None, x, y)
    assert (model.calls, len(runs)) == (2, 4)
    TraceRouting_ELBO().loss(model, None, x, y)
    assert len(runs) == 7


def test_nothing_to_swap_is_asked_again() -> None:
    logits, runs = torch.zeros(N, K, dtype=torch.float64), []
    logits[:, 0] = 1000.0

    def model() -> None:
        runs.append(1)
        normalised_likelihood(logits)

    elbo = TraceRouting_ELBO()
    for _ in range(3):
        elbo.loss(model, None)
    assert len(runs) == 4  # three steps, and one look at what depends on the assignment
    logits[:, 0] = 0.0
    with pytest.raises(ValueError, match="use TraceBalanced_ELBO"):
        elbo.loss(model, None)


@pytest.mark.parametrize("n", [1, 2])
def test_without_a_third_there_is_nobody_to_notice(n: int) -> None:
    def model() -> None:
        z = pyro.sample("z", IndependentRouting(torch.zeros(n, 2)))
        with pyro.plate("data", n):
            pyro.factor("y", z - z.float().mean())

    for _ in range(4):
        TraceRouting_ELBO().loss(model, None)


def test_an_error_leaves_everything_as_it_was() -> None:
    model, (x, y) = BetweenExperts(attention), data()
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="use TraceBalanced_ELBO"):
        TraceRouting_ELBO().loss(model, None, x, y)
    torch.testing.assert_close(model.state_dict(), before)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, 0, 1, 2], [0, 1, 0, 2]),
        ([0, ~1, 1, 1], [1, ~1, 0, 1]),
        ([0, 0, 0, ~1], None),
        ([0, 1, ~0, ~1], None),
        ([[0, 0, 0], [1, 1, 2]], [[0, 0, 0], [1, 2, 1]]),
        ([[0, ~0, 0], [~1, ~1, 2]], None),
        ([[0, 0, 1], [~1, 1, ~2]], [[0, 0, 1], [1, ~1, ~2]]),
    ],
)
def test_who_is_swapped(value: list, expected: list | None) -> None:
    drawn = torch.tensor(value)
    m = None if drawn.dim() == 1 else len(value)
    routing = CapacitySkip(torch.zeros(drawn.shape[-1], K), capacity=2, num_selected=m)
    swap = swap_two(drawn, {"fn": routing})
    assert (None if swap is None else swap.value.tolist()) == expected
    if swap is not None:
        torch.testing.assert_close(swap.value.flatten().sort().values, drawn.flatten().sort().values)


def test_batch_elements_swap_by_themselves() -> None:
    drawn = torch.tensor([[[0, 1, 0]], [[2, 2, 2]], [[1, 1, 0]]])
    swap = swap_two(drawn, {"fn": IndependentRouting(torch.zeros(3, 1, 3, K))})
    assert swap is not None
    assert swap.value.tolist() == [[[1, 0, 0]], [[2, 2, 2]], [[1, 0, 1]]]
    assert per_datapoint(swap.moved, -1).tolist() == [[True, True, False], [False] * 3, [False, True, True]]


def test_a_user_of_the_base_class_is_not_checked() -> None:
    assert SurrogateELBO._check is TraceBalanced_ELBO._check
