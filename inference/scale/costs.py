"""What a step should take on a machine, from its sizes alone."""

import math
from dataclasses import dataclass

from inference.scale.workload import Workload
from prob_moe.parallel.mesh import pieces_among


@dataclass(frozen=True)
class Machine:
    """
    One of equal devices.

    :param flops: floating-point operations of the experts in a second, forward and backward.
    :param row: seconds that a datapoint takes for all that is neither experts nor draw nor sent: router, slots, loss.
    :param bandwidth: bytes that it sends in a second while it receives as many.
    :param message: seconds that a message costs whatever its size.
    :param draw: seconds of the assignment for each pair of a datapoint and an expert.
    """

    flops: float
    row: float
    bandwidth: float
    message: float
    draw: float


@dataclass(frozen=True)
class Cost:
    """
    Of one process in a step: seconds, one after the other, and bytes that leave it.
    """

    experts: float
    rows: float
    draw: float
    exchange: float
    gradients: float
    exchanged: float
    added_up: float

    @property
    def work(self) -> float:
        """What the process does by itself."""
        return self.experts + self.rows + self.draw

    @property
    def total(self) -> float:
        """Nothing overlaps."""
        return self.work + self.exchange + self.gradients

    @property
    def share(self) -> float:
        """Of the step that passes in collectives."""
        return (self.exchange + self.gradients) / self.total


def cost(workload: Workload, machine: Machine, num_processes: int) -> Cost:
    r"""
    With P processes, of which p divide the experts, in P/p copies, B = G/P groups of each process, c slots and s bytes
    a number, d = out:

    * a process computes :math:`6 \cdot 2 d h \cdot k B c` operations, of forward and backward pass, for slots that are
      occupied or not;
    * it draws B groups of n k pairs, and takes B n rows through the layer;
    * rows of all experts go there and back, and their gradients too: :math:`4 k B c d s (p - 1) / p` bytes, k rounded
      up to a multiple of p, in 4 exchanges of p - 1 messages, behind one sum of two numbers that compares shapes;
    * gradients of the router are added up over all processes, those of experts over copies: :math:`2 (q - 1) / q` of
      their bytes for q processes, in :math:`2 \log_2 q` messages.

    :raises ValueError: if the processes do not divide the groups.
    """
    w = workload
    if w.num_groups % num_processes:
        raise ValueError(f"num_groups={w.num_groups} is no multiple of the number of processes, {num_processes}")
    pieces = pieces_among(w.num_experts, num_processes)
    copies, own = num_processes // pieces, -(-w.num_experts // pieces)
    groups = w.num_groups // num_processes
    rows = groups * w.slots
    exchanged = 4 * pieces * own * rows * w.features * w.bytes_per_number * (pieces - 1) / pieces
    messages = 4 * (pieces - 1) + _rounds(pieces)
    of_experts = own * w.expert_parameters * w.bytes_per_number * _ring(copies)
    of_router = w.router_parameters * w.bytes_per_number * _ring(num_processes)
    return Cost(
        experts=expert_flops(w, num_processes) / machine.flops,
        rows=groups * w.group_size * machine.row,
        draw=groups * w.group_size * w.num_experts * machine.draw,
        exchange=exchanged / machine.bandwidth + messages * machine.message,
        gradients=(of_experts + of_router) / machine.bandwidth
        + (_rounds(copies) + _rounds(num_processes)) * machine.message,
        exchanged=exchanged,
        added_up=of_experts + of_router,
    )


def expert_flops(workload: Workload, num_processes: int) -> float:
    """:returns: floating-point operations of the experts of one process in a step, forward and backward."""
    w = workload
    pieces = pieces_among(w.num_experts, num_processes)
    rows = w.num_groups // num_processes * w.slots * pieces
    return 6 * 2 * w.features * w.hidden * -(-w.num_experts // pieces) * rows


def _ring(count: int) -> float:
    """Share of the bytes that leaves a process when so many add up."""
    return 2 * (count - 1) / count


def _rounds(count: int) -> int:
    """Of messages, when so many add up by halves."""
    return 2 * math.ceil(math.log2(count))
