"""Outside of Pyro: gradients of networks of expert layers against exact enumeration."""

import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import DecayingAverage, balanced_surrogate, router_surrogate
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.layer.recording import record_routing
from tests.estimators.replicas import problem, standard_errors_off

DISTRIBUTIONS = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]
F64 = torch.float64


class Table(nn.Module):
    """Logits of their own for every replica, so that one backward pass gives many gradients; and a slope in x."""

    def __init__(self, logits: Tensor, slope: float) -> None:
        super().__init__()
        self.logits, self.slope = nn.Parameter(logits.clone()), slope

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + self.slope * x * torch.linspace(-1, 1, self.logits.shape[-1], dtype=F64)


class Guess(nn.Module):
    """A baseline that is wrong, and differs by datapoint."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 + 3 * x.squeeze(-1)


class Network(nn.Module):
    """One or two layers on numbers; the second router sees what the first layer puts out."""

    def __init__(self, layers, replicas, n, k, assignment, capacity, baseline=False):
        super().__init__()
        logits, _ = problem(n, k)
        generator = torch.Generator().manual_seed(1)
        self.layers = nn.ModuleList()
        for depth in range(layers):
            experts = BatchedExperts(k, 1, None, 1, dtype=F64)
            with torch.no_grad():
                experts.output.weight.copy_(torch.rand(k, 1, 1, generator=generator, dtype=F64) * 2 - 1)
                experts.output.bias.copy_(torch.linspace(-2, 2, k, dtype=F64).view(k, 1).flip(0))
            table = Table((logits * (-1) ** depth).expand(*replicas, n, k), slope=float(depth))
            options = {"baseline": Guess()} if baseline else {}
            self.layers.append(ExpertLayer(table, experts, assignment, capacity=capacity, **options))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def tables(self) -> list[Tensor]:
        return [layer.router.logits for layer in self.layers]


def inputs(n: int) -> Tensor:
    return torch.linspace(-1, 1, n, dtype=F64).unsqueeze(-1)


def losses_of(out: Tensor) -> Tensor:
    return (out.squeeze(-1) - torch.linspace(-3, 2, out.shape[-2], dtype=F64)).square() + 1


def exact_router(network: Network, x: Tensor) -> Tensor:
    """The sum over all paths of a datapoint, which no other datapoint touches."""
    paths, log_p = x.unsqueeze(0), torch.zeros(1, len(x), dtype=F64)
    for layer in network.layers:
        own = layer.router(paths).log_softmax(-1)
        outs = layer.experts.dense(paths)
        log_p = (log_p.unsqueeze(-1) + own).movedim(-1, 0).flatten(0, 1)
        paths = outs.movedim(-2, 0).flatten(0, 1)
    return (log_p.exp() * losses_of(paths)).sum()


def replicated_gradients(layers, n, k, assignment, capacity, surrogate_of, baseline=False, replicas=4000):
    network = Network(layers, (replicas,), n, k, assignment, capacity, baseline)
    x = inputs(n)
    with record_routing() as routed:
        out = network(x.expand(replicas, n, 1))
    surrogate = surrogate_of(routed, out)
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(surrogate.sum(), network.tables())], -1)


def exact_gradient(objective, layers, n, k, assignment, capacity):
    network = Network(layers, (), n, k, assignment, capacity)
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective(network, inputs(n)), network.tables())])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("baseline", [False, True])
def test_router_objective_is_unbiased(distribution, layers, baseline):
    setting = (layers, 5, 3, distribution, 2)
    samples = replicated_gradients(*setting, lambda routed, out: routed.surrogate(losses_of(out)), baseline)
    assert standard_errors_off(samples, exact_gradient(exact_router, *setting)) < 5


def without_weights(routed, out):
    laws = [visit.drawn for visit in routed.visits]
    kept = torch.stack([value >= 0 for _, value in laws]).all(0)
    return router_surrogate(losses_of(out), kept.double(), [(law.router_log_prob(z), 0.0) for law, z in laws])


def weights_of_the_last_layer(routed, out):
    laws = [visit.drawn for visit in routed.visits]
    weight = laws[-1][0].importance_weights(laws[-1][1])
    return router_surrogate(losses_of(out), weight, [(law.router_log_prob(z), 0.0) for law, z in laws])


@pytest.mark.parametrize(
    ("distribution", "layers", "biased"),
    [
        (CapacitySkip, 1, without_weights),
        (GumbelMatching, 1, without_weights),
        (DependentRounding, 2, without_weights),
        (CapacitySkip, 2, weights_of_the_last_layer),
    ],
)
def test_biased_variants_fail_the_same_check(distribution, layers, biased):
    setting = (layers, 5, 3, distribution, 2)
    samples = replicated_gradients(*setting, biased)
    assert standard_errors_off(samples, exact_gradient(exact_router, *setting)) > 8


@pytest.mark.parametrize("objective", ["router", "balanced"])
def test_a_decaying_average_learns_in_update_and_stays_unbiased(objective):
    """From the second step on; two layers."""
    setting = (2, 3, 2, CapacitySkip, 2)
    exact = exact_gradient(exact_router if objective == "router" else exact_balanced, *setting)
    network = Network(2, (4000,), *setting[1:])
    for layer in network.layers:
        layer.baseline = DecayingAverage()
    x = inputs(3)
    spread = []
    for _ in range(2):
        with record_routing() as routed:
            out = network(x.expand(4000, 3, 1))
        loss = 20 + (
            losses_of(out) if objective == "router" else together(out)
        )  # what all have in common, it takes away
        surrogate = routed.surrogate(loss, objective=objective)
        parts = torch.autograd.grad(surrogate.sum(), network.tables())
        samples = torch.cat([gradient.flatten(1) for gradient in parts], -1)
        assert standard_errors_off(samples, exact) < 5
        spread.append(float(samples.var(0).sum()))
        assert all(not layer.baseline.state_dict() for layer in network.layers) or len(spread) == 2
        for layer in network.layers:
            layer.update()
        assert all(layer.baseline.state_dict() for layer in network.layers)
    assert spread[1] < spread[0]


def test_the_surrogate_has_the_value_of_the_objective_and_trains_the_baseline():
    network = Network(2, (4000,), 5, 3, CapacitySkip, 2)
    x = inputs(5)
    guess = nn.Linear(1, 1, dtype=F64)
    network.layers[0].baseline = nn.Sequential(guess, nn.Flatten(-2))
    with record_routing() as routed:
        out = network(x.expand(4000, 5, 1))
    surrogate = routed.surrogate(losses_of(out))
    assert surrogate.shape == (4000, 5)
    exact = exact_router(Network(2, (), 5, 3, CapacitySkip, 2), x)
    assert standard_errors_off(surrogate.detach().sum(-1, keepdim=True), exact.detach().unsqueeze(0)) < 5
    learnt = torch.autograd.grad(surrogate.mean(), list(guess.parameters()))
    assert all(bool((gradient != 0).all()) for gradient in learnt)


# Balanced ------------------------------------------------------------------------------------------------------------


def together(out: Tensor) -> Tensor:
    """A loss in which datapoints interact, a dropped one too, as behind attention."""
    return (out.squeeze(-1).sum(-1) - 1).square() + out.squeeze(-1).prod(-1)


def exact_balanced(network: Network, x: Tensor) -> Tensor:
    outs, probability = x.unsqueeze(0), torch.ones(1, dtype=F64)
    for layer in network.layers:
        law = layer.assignment(layer.router(outs), capacity=layer.capacity)
        values = law.enumerate_support()
        probability = (probability * law.log_prob(values).exp()).flatten()
        outs = layer.experts(outs.expand(*values.shape, 1), values, capacity=len(x)).flatten(0, 1)
    return (probability * together(outs)).sum()


@pytest.mark.parametrize(
    ("distribution", "layers"), [(IndependentRouting, 2), (CapacitySkip, 1), (CapacitySkip, 2), (GumbelMatching, 2)]
)
def test_balanced_objective_is_unbiased_where_datapoints_interact(distribution, layers):
    setting = (layers, 3, 2, distribution, 2)
    exact = exact_gradient(exact_balanced, *setting)
    balanced = replicated_gradients(*setting, lambda r, out: r.surrogate(together(out), objective="balanced"))
    assert standard_errors_off(balanced, exact) < 5
    # A baseline that looks at the same draw.
    biased = replicated_gradients(
        *setting, lambda r, out: balanced_surrogate(together(out), score(r), together(out) / 2)
    )
    assert standard_errors_off(biased, exact) > 8


def score(routed) -> Tensor:
    return sum(law.score_function(value) for law, value in (visit.drawn for visit in routed.visits))
