"""Processes as a mesh (data, expert): who holds which experts, and what all have to agree on before they begin."""

import hashlib
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous
from torch.nn.parameter import is_lazy

#: the dimensions of a mesh: copies of the experts, and pieces of a copy
DIMENSIONS = ("data", "expert")
#: the lowest torch, and what it is needed for
LOWEST_TORCH = "2.4"
NEEDED = ("all_to_all_single", "all_gather_object", "get_process_group_ranks")


def check_torch() -> None:
    """
    :raises ImportError: if this torch does not have what experts on several processes need.
    """
    missing = [name for name in NEEDED if not hasattr(dist, name)]
    if missing:
        raise ImportError(
            f"experts on several processes need torch >= {LOWEST_TORCH} built with torch.distributed, but torch "
            f"{torch.__version__} has no torch.distributed.{missing[0]}"
        )


def join_processes(backend: str, timeout: timedelta | None = None) -> None:
    """
    ``init_process_group`` for processes that ``torchrun`` started, and starts again when one has died: its store may be
    that of before, which has the addresses of the processes of before.

    :param timeout: how long a process waits for others, by default torch's.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout or dist.default_pg_timeout))
    of_this_start = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(of_this_start, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def expert_mesh(num_experts: int, device_type: str = "cpu") -> DeviceMesh:
    """
    The mesh of all processes that divides the experts among as many as possible. Processes beyond the number of experts
    hold further copies. Under ``torchrun`` it starts ``torch.distributed`` too, with gloo on ``"cpu"`` and NCCL on
    ``"cuda"``.

    :param num_experts: k; of a network with several layers the smallest.
    :returns: dimensions "data" and "expert": the second is the largest divisor of the number of processes up to k.
    :raises ValueError: if there is no expert.
    """
    check_torch()
    if num_experts < 1:
        raise ValueError(f"num_experts must be a positive int, got {num_experts!r}")
    if not dist.is_initialized():
        join_processes("nccl" if device_type == "cuda" else "gloo")
    world = dist.get_world_size()
    pieces = pieces_among(num_experts, world)
    return init_device_mesh(device_type, (world // pieces, pieces), mesh_dim_names=DIMENSIONS)


def pieces_among(num_experts: int, num_processes: int) -> int:
    """:returns: among how many processes the experts are divided: the largest divisor of their number up to k."""
    return max(size for size in range(1, min(num_experts, num_processes) + 1) if num_processes % size == 0)


@dataclass(frozen=True, eq=False)
class Layout:
    """
    The place of this process in a mesh.

    :param mesh: with the dimensions "data" and "expert", over all processes.
    :raises ValueError: on another mesh.
    """

    mesh: DeviceMesh

    def __post_init__(self) -> None:
        check_torch()
        if not isinstance(self.mesh, DeviceMesh):
            raise ValueError(f"mesh must be a DeviceMesh, such as expert_mesh makes, got {self.mesh!r}")
        if self.mesh.mesh_dim_names != DIMENSIONS:
            raise ValueError(f"mesh must have the dimensions {DIMENSIONS}, got {self.mesh.mesh_dim_names}")
        if self.mesh.size() != dist.get_world_size():
            raise ValueError(
                f"mesh has {self.mesh.size()} processes where {dist.get_world_size()} run: use all of them"
            )
        if not torch.equal(self.mesh.mesh.flatten(), torch.arange(self.mesh.size())):
            raise ValueError(f"mesh must count the processes row by row, got {self.mesh.mesh.tolist()}")

    # The groups of a mesh are of this process, and are neither copied nor saved.
    def __deepcopy__(self, memo: dict[int, Any]) -> "Layout":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("experts on several processes cannot be pickled: save full_state_dict(network)")

    @cached_property
    def num_processes(self) -> int:
        """P"""
        return self.mesh.size()

    @cached_property
    def num_pieces(self) -> int:
        """Processes among which the experts are divided."""
        return self.mesh.size(1)

    @cached_property
    def num_copies(self) -> int:
        """How often every expert is there."""
        return self.mesh.size(0)

    @cached_property
    def piece(self) -> int:
        """Which experts this process has."""
        return self.mesh.get_local_rank("expert")

    @cached_property
    def position(self) -> int:
        """Of this process among all: copy after copy, in each of them piece after piece."""
        return self.mesh.get_local_rank("data") * self.num_pieces + self.piece

    @cached_property
    def pieces(self) -> ProcessGroup:
        """The processes that together have every expert once: they exchange datapoints."""
        return self.mesh.get_group("expert")

    @cached_property
    def copies(self) -> ProcessGroup:
        """The processes that have the same experts as this one: they add up gradients."""
        return self.mesh.get_group("data")

    def share(self, num_experts: int, piece: int | None = None) -> tuple[int, int]:
        """
        :param piece: of which process, by default this one's.
        :returns: the first expert of a process, and how many it has: numbers that differ by one at most.
        """
        piece = self.piece if piece is None else piece
        least, more = divmod(num_experts, self.num_pieces)
        return piece * least + min(piece, more), least + (piece < more)


def agree(problem: str | None = None, **facts: object) -> None:
    """
    Let all processes tell each other what has to be the same. Nobody is left waiting by one that finds an error.

    :param problem: why this process cannot go on, if so.
    :param facts: by name.
    :raises ValueError: in every process, if one has a problem, or facts differ.
    """
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (problem, facts))
    if problem is not None:
        raise ValueError(problem)
    for process, (theirs, _) in enumerate(told):
        if theirs is not None:
            raise ValueError(f"process {process}: {theirs}")
    first = told[0][1]
    for process, (_, others) in enumerate(told):
        differing = [name for name in first if others.get(name) != first[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{name.replace('_', ' ')} must be the same in all processes, got {first[name]!r} in process 0 and "
                f"{others.get(name)!r} in process {process}; make it alike everywhere, with the same seed"
            )


def fingerprint(module: nn.Module) -> str:
    """:returns: a hash of the values of all parameters and buffers; those without a shape so far are left out."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value):
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
