"""A step timed on the processes that run it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from inference.scale.traffic import Traffic
from inference.scale.workload import Step, Workload

WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """
    Of one process. Times are the least of several steps in seconds, since noise only adds.

    :param step: wall time.
    :param work: processor time of a step, without waiting for others.
    :param draw: processor time of the assignment with its weights.
    :param experts: processor time of this process's experts on their slots, forward and backward.
    :param collectives: wall time in collectives.
    :param share: of a step that passes in collectives, the median over steps; waiting for the slowest counts.
    :param exchanged: bytes that leave the process with datapoints, there and back.
    :param added_up: bytes that leave it for sums of gradients, and for comparing shapes.
    :param calls: of collectives.
    """

    num_processes: int
    step: float
    work: float
    draw: float
    experts: float
    collectives: float
    share: float
    exchanged: int
    added_up: int
    calls: int


def measure(workload: Workload, mesh: DeviceMesh | None, num_steps: int) -> Measured:
    """
    Every process has to call it.

    :param mesh: of the processes; None for one alone.
    """
    step = Step(workload, mesh)
    seconds, works, inside = [], [], []
    for number in range(WARM_UP + num_steps):
        with Traffic() as traffic:
            begun = time.perf_counter()
            work = timed(partial(step, number), time.thread_time)
            took = time.perf_counter() - begun
        if number >= WARM_UP:
            seconds.append(took)
            works.append(work)
            inside.append(traffic.seconds.total())
    draws = [timed(partial(step.draw, number), time.thread_time) for number in range(WARM_UP + num_steps)]
    sent = traffic.bytes
    return Measured(
        1 if mesh is None else mesh.size(),
        min(seconds),
        min(works),
        min(draws[WARM_UP:]),
        min(timed(step.experts, time.thread_time) for _ in range(WARM_UP + num_steps)),
        min(inside),
        median(part / whole for part, whole in zip(inside, seconds)),
        sent["all_to_all_single"],
        sent["all_reduce"],
        traffic.calls.total(),
    )


def link(num_steps: int = 20, large: int = 2**20) -> tuple[float, float]:
    """
    What sending costs between these processes, from exchanges of nearly nothing and of so many numbers. Every process
    has to call it.

    :returns: seconds of an exchange whatever its size, for each of the others; bytes that a process sends in a second.
    """
    others = dist.get_world_size() - 1
    least, most = (
        min(timed(partial(exchange, size), time.perf_counter) for _ in range(num_steps)) for size in (1, large)
    )
    sent = 4 * large * others
    return least / others, sent / max(most - least, 1e-9)


def exchange(size: int) -> None:
    """Of so many numbers with each process."""
    rows = torch.zeros(dist.get_world_size(), size)
    dist.all_to_all_single(torch.empty_like(rows), rows)


def timed(work: Callable[[], None], clock: Callable[[], float]) -> float:
    """:returns: seconds."""
    begun = clock()
    work()
    return clock() - begun
