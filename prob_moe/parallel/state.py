"""The state of a network whose experts are divided, as that of the network on one process, and back."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prob_moe.parallel.experts import ParallelExperts
from prob_moe.parallel.gradients import divided_experts


@torch.no_grad()
def full_state_dict(network: nn.Module) -> dict[str, Any]:
    """
    :returns: the ``state_dict`` that the network has on one process, with all experts, in every process. Every process
        has to call it.
    """
    state: dict[str, Any] = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in network.state_dict().items()
    }
    for name, experts in divided_experts(network):
        for inner, own in _own_entries(experts, name):
            part = state.pop(inner)
            state[own] = gather_experts(experts, part) if isinstance(part, Tensor) else part
    return state


def load_full_state_dict(network: nn.Module, state: dict[str, Any]) -> None:
    """
    :param state: of the network on one process, or from :func:`full_state_dict`: each process takes its experts.
    :raises RuntimeError: if it is of another network, see ``load_state_dict``.
    """
    state = dict(state)
    for name, experts in divided_experts(network):
        for inner, own in _own_entries(experts, name):
            if own in state:
                whole = state.pop(own)
                if len(whole) != experts.num_experts:
                    raise RuntimeError(f"{own} is of {len(whole)} experts, and the network has {experts.num_experts}")
                state[inner] = whole[experts.first : experts.first + experts.local.num_experts]
    network.load_state_dict(state)


@torch.no_grad()
def gather_experts(experts: ParallelExperts, part: Tensor) -> Tensor:
    """
    :param part: of the experts of this process, (own, ...).
    :returns: of all, (k, ...). Every process has to call it.
    """
    layout, part = experts.layout, part.detach()
    if layout.num_pieces == 1:
        return part.clone()
    counts = [layout.share(experts.num_experts, piece)[1] for piece in range(layout.num_pieces)]
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=layout.pieces)
    return torch.cat([own[:count] for own, count in zip(parts, counts)])


def _own_entries(experts: ParallelExperts, name: str) -> list[tuple[str, str]]:
    """Names of the entries here, and on one process."""
    prefix = f"{name}." if name else ""
    return [(f"{prefix}local.{inner}", f"{prefix}{inner}") for inner in experts.local.state_dict()]
