"""Experts divided among processes: every process has some, and datapoints travel to theirs and back."""

import copy
import hashlib
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from prob_moe.experts import BatchedExperts, SlotExperts, StackedExperts
from prob_moe.experts.plan import expert_loads, room_for_all
from prob_moe.parallel.exchange import by_process, exchange, from_processes, one_more
from prob_moe.parallel.mesh import Layout, agree, fingerprint

Experts = TypeVar("Experts", bound=BatchedExperts | StackedExperts)


class ParallelExperts(SlotExperts):
    """
    k experts divided among the processes of a mesh, which every process uses as if it had all of them.

    Each process calls the layer with datapoints of its own, (*batch, n, d), in the same shape everywhere. Every expert
    has the same number of slots in all processes and batch elements, so that the exchange is one ``all_to_all_single``
    of equal pieces there, and one back. With B batch elements of a process and c slots k B c (d + out) numbers change
    places in a forward pass, and as many in a backward pass; of them one in p stays, for experts divided among p. A
    capacity gives c; without one the largest load does, for which the processes ask each other (``all_reduce``).

    Whatever calls it runs on every process of the mesh, backward passes, evaluation and repetitions included, else the
    others wait for the time limit of the process group. Shapes are compared at every call, at the cost of a further
    small ``all_reduce``; on CUDA once for each shape. Where no process has to be asked (experts that are not divided)
    it costs what the experts cost alone.

    Written for gloo and NCCL; only gloo has been run.

    :param experts: all k of them, the same in all processes, which make them with the same seed. A process keeps its
        own as ``local``, plain parameters; their gradients are those of the loss summed over the processes which share
        a copy of the experts, see :func:`~prob_moe.parallel.sum_gradients`.
    :param mesh: with dimensions "data" and "expert", as :func:`~prob_moe.parallel.expert_mesh` makes it. The experts
        are divided along the second, and copied along the first.
    :raises ValueError: in all processes: on another mesh, more pieces than experts, experts that share parameters, or
        that differ between processes.
    """

    def __init__(self, experts: BatchedExperts | StackedExperts, mesh: DeviceMesh) -> None:
        super().__init__(getattr(experts, "num_experts", 0))
        self.layout = Layout(mesh)
        agree(
            _problem(experts, self.layout),
            experts=" ".join(repr(experts).split()),
            initial_values_of_the_experts=fingerprint(experts) if isinstance(experts, nn.Module) else "",
        )
        self.first, count = self.layout.share(self.num_experts)
        self.local = take_experts(experts, self.first, count)
        self.residual, self.in_features = experts.residual, experts.in_features
        self._alike: set[object] = set()

    def forward(self, x: Tensor, assignment: Tensor, **options: Any) -> Tensor:
        """
        As :class:`~prob_moe.experts.BatchedExperts`, on every process of the mesh.

        :param capacity: c, slots of every expert, the same in all processes; None for those that the largest load in
            any process wants.
        """
        if self.layout.num_pieces == 1:
            return self.local(x, assignment, **options)
        return super().forward(x, assignment, **options)

    def dense(self, x: Tensor) -> Tensor:
        if self.layout.num_pieces == 1:
            return self.local.dense(x)
        out = super().dense(x)
        return x.unsqueeze(-2) + out if self.residual else out

    def process(self, inputs: Tensor) -> Tensor:
        """
        :param inputs: rows of this process for all experts, (k, c, d).
        :returns: (k, c, out).
        """
        pieces, own = self.layout.num_pieces, self.local.num_experts
        if pieces == 1:
            return self.local.forward_dispatched(inputs)
        self._check_alike(inputs)
        group, rows = self.layout.pieces, inputs.shape[1]
        arrived = exchange(by_process(inputs, pieces), group)[:, :own]
        out = self.local.forward_dispatched(arrived.transpose(0, 1).flatten(1, 2))
        out = out.unflatten(1, (pieces, rows)).transpose(0, 1)
        if own < -(-self.num_experts // pieces):
            out = one_more(out)
        return from_processes(exchange(out, group), self.num_experts)

    def _with_room_for_all(
        self, x: Tensor, entries: Tensor, present: Tensor | None, num_selected: int, validate_args: bool | None
    ) -> Tensor:
        most = expert_loads(entries, self.num_experts, present).max()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.layout.pieces)
        return self._in_slots(x, entries, present, room_for_all(most), num_selected, validate_args)

    def _check_alike(self, inputs: Tensor) -> None:
        """Pieces of different sizes would not fail in gloo: one process would die, and others get wrong numbers."""
        facts = (tuple(inputs.shape), str(inputs.dtype), torch.is_grad_enabled(), inputs.requires_grad)
        if inputs.is_cuda and facts in self._alike:
            return
        code = int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=7).digest(), "big")
        extremes = torch.tensor([code, -code], device=inputs.device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.layout.pieces)
        if int(extremes.sum()):
            told: list[Any] = [None] * self.layout.num_pieces
            dist.all_gather_object(told, facts, group=self.layout.pieces)
            raise ValueError(
                "processes must have data of one shape, with or without gradient all of them, but the inputs of the "
                f"experts (k, batch * slots, d), their dtype, whether gradients are on and they require one are {told}"
            )
        self._alike.add(facts)

    def extra_repr(self) -> str:
        last = self.first + self.local.num_experts - 1
        return f"experts {self.first}..{last} of {self.num_experts}, {self.layout.num_copies} copies"


def take_experts(experts: Experts, first: int, count: int) -> Experts:
    """:returns: a copy of ``count`` of the experts, whose parameters are their own."""
    memo: dict[int, Any] = {}
    for value in [*experts.parameters(), *experts.buffers()]:
        part = value.detach()[first : first + count].clone()
        memo[id(value)] = nn.Parameter(part, value.requires_grad) if isinstance(value, nn.Parameter) else part
    own = copy.deepcopy(experts, memo)
    own.num_experts = count
    return own


def _problem(experts: object, layout: Layout) -> str | None:
    if not isinstance(experts, BatchedExperts | StackedExperts):
        return (
            "experts that are divided among processes must be a BatchedExperts or modules of one form, got one "
            f"{type(experts).__name__}"
        )
    if isinstance(experts, BatchedExperts) and experts.batch_shape:
        return f"experts that are divided among processes are one set, got batch_shape={tuple(experts.batch_shape)}"
    k, pieces = experts.num_experts, layout.num_pieces
    if pieces > k:
        return f"mesh divides the experts among {pieces} processes, but there are {k}: use expert_mesh({k})"
    for name, value in [*experts.named_parameters(), *experts.named_buffers()]:
        if not value.dim() or value.shape[0] != k:
            return f"experts must have parameters of their own, but {name} of shape {tuple(value.shape)} is shared"
    return None
