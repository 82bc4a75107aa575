"""Processes that torchrun started, of which each runs the command."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from inference.runs.exits import end, tell
from inference.training.deadline import Deadline
from prob_moe.parallel import expert_mesh
from prob_moe.parallel.mesh import agree, join_processes

#: seconds from torchrun's SIGTERM, of the 30 that it waits before it kills
LAST_SECONDS = 25.0


def num_started() -> int:
    """:returns: how many processes run this command together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """:returns: whether this process is the one that writes and prints."""
    return num_started() == 1 or int(os.environ.get("RANK", "0")) == 0


def restarted() -> bool:
    """:returns: whether torchrun has started the processes again, after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_shared(num_groups: int | None) -> None:
    """:raises ValueError: if several processes were started for a batch that they cannot share."""
    started = num_started()
    if started > 1 and (num_groups is None or num_groups % started):
        raise ValueError(
            f"{started} processes share a batch: give --num-groups, a multiple of {started}, got {num_groups}"
        )


class LostProcessError(RuntimeError):
    """
    A process that shares the fit has died, or did not answer in time.

    :param timeout: seconds.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(
            f"process {os.environ.get('RANK')} stops: another process of this fit has ended, or did not answer within "
            f"{timeout:g} s; start again with --resume"
        )


@contextmanager
def processes(
    num_experts: int, device_type: str, timeout: float, facts: dict[str, object]
) -> Iterator[DeviceMesh | None]:
    """
    To be entered within :class:`~inference.training.interrupts.StopSignals`.

    :param num_experts: k.
    :param timeout: seconds to wait for the others.
    :param facts: by name, what has to be the same in all of them.
    :returns: within, the mesh of the processes that torchrun started; None for one alone.
    :raises LostProcessError: instead of what torch says when another process is gone.
    :raises ValueError: in all processes, if facts differ.
    """
    if num_started() == 1:
        yield None
        return
    lost = LostProcessError(timeout)
    with Deadline(min(timeout, LAST_SECONDS), str(lost), 2):
        try:
            backend = "nccl" if device_type == "cuda" else "gloo"
            join_processes(backend, timedelta(seconds=timeout))
            agree(None, **facts)
            yield expert_mesh(num_experts, device_type)
            dist.destroy_process_group()
        except RuntimeError as error:
            if not _is_of_others(error):
                raise
            raise lost from error


def _is_of_others(error: RuntimeError) -> bool:
    words = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in words or "nccl" in words or "connection" in words


def end_each(message: str, code: int, *, together: bool = True) -> NoReturn:
    """
    Print one line, and leave. Where several processes run, at once: after an error torch's own threads may wait for
    those that are gone.

    :param code: of the exit.
    :param together: whether the others end for the same reason. torchrun stops all as soon as one has failed, so each
        waits until they have said so, too.
    """
    if num_started() == 1 or not (dist.is_torchelastic_launched() or dist.is_initialized()):
        end(message, code)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(message)
    if together:
        with suppress(Exception):  # torchrun itself may be gone
            _wait_for_others(seconds=10)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait_for_others(seconds: float) -> None:
    """Until all have come here, at the store of torchrun, which outlives them."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    last = time.monotonic() + seconds
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))  # type: ignore[attr-defined]
    name = f"prob_moe ends {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store.add(name, 1)
    while store.add(name, 0) < num_started() and time.monotonic() < last:
        time.sleep(0.05)
