"""Small trainings that any number of processes share: what each draws, loses, and learns."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import DecayingAverage, TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.mixture import MixtureOfExperts
from prob_moe.parallel import (
    Groups,
    ParallelExperts,
    clip_grad_norm_,
    data_parallel,
    full_state_dict,
    gather_experts,
    sum_gradients,
)
from prob_moe.parallel.gradients import divided_experts
from prob_moe.rules import (
    BASELayer,
    DenseMixer,
    DenseMixture,
    ExpertChoice,
    GumbelSoftmax,
    LossFreeBias,
    SampledGate,
    SigmaMoE,
    SinkhornBASE,
    SoftMoE,
    SparseMixer,
    SparsityConstrainedTransport,
    Switch,
    TopGates,
)

#: experts, no multiple of 2 or 4; features; groups
K, D, G = 5, 3, 4
#: datapoints of the global batches of a step, whose gradients are accumulated: uneven, and with an empty group
BATCHES = [(22, 16), (3, 23)]


@dataclass(frozen=True)
class Case:
    """
    :ivar assignment: of the layers.
    :ivar options: of the layers.
    :ivar objective: of the surrogate; None for the loss itself.
    :ivar last: options of the last layer.
    :ivar batches: datapoints of the global batches.
    """

    assignment: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    objective: str | None = None
    last: dict[str, Any] = field(default_factory=dict)
    batches: list[tuple[int, int]] = field(default_factory=lambda: BATCHES)


TIGHT = {"capacity_factor": 1.2}
PAIR = {"num_selected": 2}
CASES = {
    "rounding": Case(DependentRounding, TIGHT, "router"),
    "skip": Case(CapacitySkip, {"capacity": 2}, "router", {"baseline": "average"}),
    "independent": Case(IndependentRouting, {}, "router", {"baseline": "network"}),
    "independent, slots": Case(IndependentRouting, {"slots": 6}, "balanced"),
    "matching": Case(GumbelMatching, TIGHT, "balanced", {"baseline": "average"}),
    "rounding, bound": Case(DependentRounding, TIGHT, "mixture", PAIR),
    "skip, bound": Case(CapacitySkip, TIGHT, "mixture", PAIR),
    "independent, gates": Case(IndependentRouting, PAIR | {"combine": "gates"}, "balanced"),
    "skip, gates": Case(CapacitySkip, TIGHT | PAIR | {"combine": "gates"}, "balanced"),
    "balanced by a loss": Case(IndependentRouting, {"load_balancing": 0.1}, "router"),
    "switch": Case(Switch, TIGHT),
    "top gates": Case(TopGates, TIGHT),
    "loss-free bias": Case(partial(LossFreeBias, K, num_selected=2, rate=0.05), TIGHT),
    "Gumbel-softmax": Case(GumbelSoftmax, TIGHT),
    "sampled gate": Case(SampledGate),
    "SparseMixer": Case(partial(SparseMixer, epsilon=1.0), TIGHT),
    "sigma": Case(partial(SigmaMoE, num_selected=2, expert_dropout=0.3)),
    "dense mixture": Case(DenseMixture),
    "DenseMixer": Case(partial(DenseMixer, num_selected=2)),
    "Soft MoE": Case(SoftMoE),
    "expert choice": Case(ExpertChoice),
    "BASE": Case(partial(BASELayer, carry=False), {"capacity_factor": 2.0}),
    # The balanced plan of a datapoint alone is uniform, whatever its logits: rounding would decide.
    "S-BASE": Case(SinkhornBASE, TIGHT, batches=[(22, 16), (8, 23)]),
    # With fewer experts per datapoint its plan jumps at ties, where it likes to sit: rounding decides.
    "transport": Case(partial(SparsityConstrainedTransport, num_selected=K)),
}


class Network(nn.Module):
    """Two expert layers of one shape, with and without a residual connection."""

    def __init__(self, case: Case, mesh: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D).double()
        last = dict(case.last)
        if "baseline" in last:
            average = last["baseline"] == "average"
            last["baseline"] = DecayingAverage() if average else nn.Sequential(nn.Linear(D, 1), nn.Flatten(-2)).double()
        self.first = self._layer(case, mesh, residual=True)
        self.second = self._layer(case, mesh, residual=False, **last)

    @staticmethod
    def _layer(case: Case, mesh: Any, *, residual: bool, **more: Any) -> ExpertLayer:
        experts = BatchedExperts(K, D, 4, D, residual=residual, dtype=torch.float64)
        return ExpertLayer(None, experts, case.assignment, **case.options, **more, mesh=mesh)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.second(self.first(self.inner(x), mask), mask)


@dataclass
class Broken:
    """
    What a training does wrong on purpose.

    :ivar experts_within_group: adds up experts over the processes that exchange, too.
    :ivar local_n: divides by its own datapoints.
    :ivar averaged: averages the gradients of what is not an expert.
    """

    experts_within_group: bool = False
    local_n: bool = False
    averaged: bool = False


def batch(step: int, micro_step: int, batches: list[tuple[int, int]] = BATCHES) -> tuple[Tensor, Tensor]:
    """:returns: x and y, (datapoints, D) each, the same in all processes."""
    generator = torch.Generator().manual_seed(10 * step + micro_step)
    n = batches[step % len(batches)][micro_step]
    x, y = torch.randn(2, n, D, generator=generator, dtype=torch.float64)
    return x, y


def train(
    case: Case, mesh: Any = None, *, num_steps: int = 3, dense: str = "sum", broken: Broken | None = None
) -> dict[str, Tensor]:
    """
    Three steps of Adam, each of two micro-steps.

    :param mesh: None for one process without any of this.
    :param dense: who adds up what is not an expert: "sum", "ddp" or "fsdp".
    :returns: all that has to be equal, by name: the same in all processes.
    """
    broken = broken or Broken()
    torch.manual_seed(1)
    groups = Groups(G, mesh)
    draws = groups.keyed_draws(5)
    network = Network(case, mesh)
    called: nn.Module = network
    if dense == "ddp":
        called = data_parallel(network)
    elif dense == "fsdp":
        shard_dense(network)
    optimizer = torch.optim.Adam(called.parameters(), lr=0.05)
    seen: dict[str, Tensor] = {}
    for step in range(num_steps):
        optimizer.zero_grad()
        for micro_step in range(2):
            x, y = batch(step, micro_step, case.batches)
            own_x, own_y, mask = groups.cut(x, y)
            n = int(mask.sum()) if broken.local_n else sum(case.batches[step % len(case.batches)])
            waits = dense == "ddp" and micro_step == 0
            with called.no_sync() if waits else nothing(), draws.step(step, micro_step), record_routing() as routed:
                loss = loss_of(case, called, routed, own_x, own_y, mask, n, groups)
                loss.backward()
            seen |= recorded(routed, groups, f"{step}.{micro_step}")
            seen[f"loss {step}.{micro_step}"] = groups.gather(loss.detach().reshape(1, 1)).sum()
        finish(network, dense, broken)
        if not step:
            seen |= gradients(network)
        seen[f"norm {step}"] = clip_grad_norm_(network, 0.5)
        optimizer.step()
        for layer in (network.first, network.second):
            layer.update()
    seen |= {f"state {name}": value for name, value in full_state_dict(network).items() if isinstance(value, Tensor)}
    network.eval()
    x, _ = batch(0, 0)
    own_x, mask = groups.cut(x)
    served = network(own_x, mask).detach()
    if served.dim() == 4:
        served = served.movedim(1, 2)
    seen["served"] = groups.join(served, len(x))
    return seen


def loss_of(case: Case, network: nn.Module, routed: Any, x: Tensor, y: Tensor, mask: Tensor, n: int, groups: Groups):
    """:returns: the local sum over the global n."""
    # Whatever stands in padding must not matter.
    out = network(x.masked_fill(~mask.unsqueeze(-1), math.nan).where(mask.unsqueeze(-1), 0.0), mask)
    if out.dim() == 4:
        y, mask = y.unsqueeze(1), mask.unsqueeze(1)
    losses = (out - y).square().sum(-1).masked_fill(~mask, 0.0)
    extra = routed.loss.sum() / groups.num_groups / 2
    if case.objective is None:
        return losses.sum() / n + extra
    if case.objective == "balanced":
        losses = losses.sum(-1)
    return routed.surrogate(losses, objective=case.objective).sum() / n + extra


def recorded(routed: Any, groups: Groups, when: str) -> dict[str, Tensor]:
    """:returns: the experts that were used, of all groups; the m of a datapoint in order."""
    found = {}
    for name, layer in routed.record().layers.items():
        if layer.value is not None:
            value = layer.value.sort(-2).values if layer.value.dim() == 3 else layer.value
            found[f"draw {when} {name}"] = groups.gather(value)
    return found


def finish(network: Network, dense: str, broken: Broken) -> None:
    """Add up the gradients, the wrong way if wanted."""
    sum_gradients(network, experts_only=dense != "sum")
    for _, experts in divided_experts(network):
        if broken.experts_within_group:
            for parameter in experts.local.parameters():
                rows = torch.zeros(K, *parameter.shape[1:], dtype=parameter.dtype)  # processes differ by an expert
                rows[: len(parameter)] = parameter.grad
                torch.distributed.all_reduce(rows, group=experts.layout.pieces)
                parameter.grad.copy_(rows[: len(parameter)])
    if broken.averaged:
        divided = {id(p) for _, experts in divided_experts(network) for p in experts.parameters()}
        for parameter in network.parameters():
            if id(parameter) not in divided:
                parameter.grad /= torch.distributed.get_world_size()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """:returns: those of all experts, and of the rest, by their names on one process."""
    found = {}
    divided = dict(divided_experts(network))
    for name, parameter in network.named_parameters():
        grad = parameter.grad
        if hasattr(grad, "full_tensor"):
            grad = grad.full_tensor()
        owner = next((path for path in divided if name.startswith(f"{path}.local.")), None)
        if owner is not None:
            grad = gather_experts(divided[owner], grad)
            name = name.replace(".local.", ".")
        found[f"gradient {name}"] = grad.clone()
    return found


def shard_dense(network: Network) -> None:
    """``fully_shard`` for all but the experts, whose averaging is undone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from prob_moe.parallel import expert_parameters

    flat = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fully_shard(network, mesh=flat, ignored_params=expert_parameters(network))
    network.set_gradient_divide_factor(1.0)


@contextmanager
def nothing():
    yield


# In a Pyro model ------------------------------------------------------------------------------------------------------

ELBOS = {
    "Pyro, router": (TraceRouting_ELBO, dict(assignment=DependentRounding)),
    "Pyro, balanced": (TraceBalanced_ELBO, dict(assignment=GumbelMatching)),
    "Pyro, mixture": (TraceMixture_ELBO, dict(assignment=CapacitySkip, num_selected=2)),
}


def infer(elbo: Any, options: dict[str, Any], mesh: Any = None, *, vectorized: bool = False) -> dict[str, Tensor]:
    """Two steps of an ELBO with two particles, which a baseline compares where it can."""
    torch.manual_seed(2)
    groups = Groups(G, mesh)
    draws = groups.keyed_draws(5)
    experts: Any = BatchedExperts(K, D, 4, 1, dtype=torch.float64)
    if mesh is not None:
        experts = ParallelExperts(experts, mesh)

    def likelihood(out: Tensor) -> Any:
        return pyro.distributions.Normal(out.squeeze(-1), 0.5)

    mixture = MixtureOfExperts(nn.Linear(D, K).double(), experts, likelihood, capacity_factor=1.2, **options)

    def model(x: Tensor, y: Tensor, mask: Tensor) -> None:
        with pyro.plate("groups", len(x), dim=-2):
            mixture(x, y, mask)

    loss_of_elbo = elbo(num_particles=2, vectorize_particles=vectorized, max_plate_nesting=2)
    seen: dict[str, Any] = {}
    optimizer = torch.optim.Adam(mixture.parameters(), lr=0.05)
    for step in range(2):
        x, y = batch(step, 0)
        own_x, own_y, mask = groups.cut(x, y[:, 0])
        optimizer.zero_grad()
        with draws.step(step):
            loss = loss_of_elbo.differentiable_loss(model, None, own_x, own_y, mask) / len(x)
            loss.backward()
        sum_gradients(mixture)
        seen |= {f"{name} {step}": value for name, value in gradients(mixture).items()}
        seen[f"loss {step}"] = groups.gather(loss.detach().reshape(1, 1)).sum()
        optimizer.step()
    return seen
