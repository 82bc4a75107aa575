"""Processes that torchrun started, of which each runs the command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from prob_moe.parallel import expert_mesh


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
    """A process that shares the fit has died, or did not answer in time."""


@contextmanager
def processes(num_experts: int, device_type: str, timeout: float) -> Iterator[DeviceMesh | None]:
    """
    :param num_experts: k.
    :param timeout: seconds to wait for the others.
    :returns: within, the mesh of the processes that torchrun started; None for one alone.
    :raises LostProcessError: instead of what torch says when another process is gone.
    """
    if num_started() == 1:
        yield None
        return
    try:
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        yield expert_mesh(num_experts, device_type)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _is_of_others(error):
            raise
        raise LostProcessError(
            f"process {os.environ.get('RANK')} stops: another process of this fit has ended, or did not answer within "
            f"{timeout:g} s; start again with --resume"
        ) from error


def _is_of_others(error: RuntimeError) -> bool:
    words = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in words or "nccl" in words or "connection" in words
