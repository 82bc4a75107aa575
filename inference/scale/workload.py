"""A step of one layer of experts, by the sizes that its cost depends on."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from inference.registry.builtin import REGISTRY
from prob_moe.distributions import KeyedDraws, draws_at
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.parallel import Groups, ParallelExperts, sum_gradients

SEED = 0


@dataclass(frozen=True)
class Workload:
    """
    Forward and backward pass of a layer, and the sum of its gradients.

    :param num_groups: G, of all processes.
    :param group_size: n, datapoints of a group.
    :param num_experts: k, networks d -> h -> d.
    :param features: d.
    :param hidden: h.
    :param num_selected: m, experts of a datapoint.
    :param capacity_factor: every expert has ceil(factor * n m / k) slots in a group.
    :param assignment: name of a procedure with a capacity.
    :param bytes_per_number: of what is sent and added up.
    """

    num_groups: int = 4
    group_size: int = 512
    num_experts: int = 16
    features: int = 128
    hidden: int = 512
    num_selected: int = 1
    capacity_factor: float = 1.25
    assignment: str = "dependent-rounding"
    bytes_per_number: int = 4

    def __post_init__(self) -> None:
        for name in ("num_groups", "group_size", "num_experts", "features", "hidden", "num_selected"):
            check_positive_int(name, getattr(self, name))
        if not getattr(REGISTRY.procedures[self.assignment].make, "limited", True):
            raise ValueError(f"assignment must be a procedure with a capacity, got {self.assignment!r}")

    @property
    def slots(self) -> int:
        """Of every expert in a group."""
        return math.ceil(self.capacity_factor * self.group_size * self.num_selected / self.num_experts)

    @property
    def expert_parameters(self) -> int:
        """Of one expert."""
        return 2 * self.features * self.hidden + self.hidden + self.features

    @property
    def router_parameters(self) -> int:
        return (self.features + 1) * self.num_experts

    def law(self, logits: Tensor) -> Any:
        """:returns: the distribution of an assignment."""
        several = {"num_selected": self.num_selected} if self.num_selected > 1 else {}
        return REGISTRY.procedures[self.assignment].make(logits, capacity_factor=self.capacity_factor, **several)


class InSlots(ExpertLayer):
    """On one process too, every expert has the slots that several processes exchange, occupied or not."""

    def slots_within(self, limit: int | None, x: Tensor) -> int | None:
        return limit


class Step:
    """
    The step on this process, with data and parameters of its own making.

    :param mesh: of the processes; None for one that knows of no others.
    """

    def __init__(self, workload: Workload, mesh: DeviceMesh | None) -> None:
        torch.manual_seed(SEED)
        w = self.workload = workload
        self.groups = Groups(w.num_groups, mesh)
        self.draws: KeyedDraws = self.groups.keyed_draws(SEED)
        self.layer = InSlots(
            nn.Linear(w.features, w.num_experts),
            BatchedExperts(w.num_experts, w.features, w.hidden, w.features),
            REGISTRY.procedures[w.assignment].make,
            capacity_factor=w.capacity_factor,
            num_selected=w.num_selected if w.num_selected > 1 else None,
            mesh=mesh,
        )
        x, y = torch.randn(2, w.num_groups * w.group_size, w.features)
        self.x, self.y, self.mask = self.groups.cut(x, y)
        self.x.requires_grad_()  # as behind other layers

    def __call__(self, number: int) -> None:
        """:param number: of the step, which its draws depend on."""
        self.layer.zero_grad()
        objective = "router" if self.workload.num_selected == 1 else "mixture"
        with self.draws.step(number), record_routing() as routed:
            out = self.layer(self.x, self.mask)
            y = self.y if out.dim() == self.y.dim() else self.y.unsqueeze(1)
            losses = (out - y).square().sum(-1)
            routed.surrogate(losses, objective=objective).sum().backward()  # type: ignore[arg-type]
        sum_gradients(self.layer)

    def draw(self, number: int) -> None:
        """What of it is the assignment, with its weights."""
        with torch.no_grad():
            logits = self.layer.router(self.x)
        with self.draws.step(number), draws_at("experts", len(self.x)):
            law = self.workload.law(logits)
            law.importance_weights(law.sample())

    def experts(self) -> None:
        """What of it is the experts of this process, on all their slots."""
        own: Any = self.layer.experts
        pieces = 1
        if isinstance(own, ParallelExperts):
            pieces, own = own.layout.num_pieces, own.local
        slots = len(self.x) * self.workload.slots * pieces
        inputs = torch.ones(own.num_experts, slots, self.workload.features, requires_grad=True)
        own.forward_dispatched(inputs).sum().backward()
