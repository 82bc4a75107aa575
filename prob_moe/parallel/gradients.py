"""Gradients of a loss that is summed over processes: what is added up over whom, and one norm for all."""

import math
from collections.abc import Iterable, Iterator
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from prob_moe.parallel.experts import ParallelExperts


def divided_experts(network: nn.Module) -> Iterator[tuple[str, ParallelExperts]]:
    """:returns: names and modules of the experts in a network that are divided among processes."""
    return ((name, part) for name, part in network.named_modules() if isinstance(part, ParallelExperts))


def expert_parameters(network: nn.Module) -> set[nn.Parameter]:
    """
    :returns: the parameters of the experts of this process, which other processes do not have, or do not have all:
        for ``fully_shard(network, ignored_params=expert_parameters(network))``.
    """
    return {parameter for _, experts in divided_experts(network) for parameter in experts.local.parameters()}


@torch.no_grad()
def sum_gradients(network: nn.Module, *, experts_only: bool = False) -> None:
    """
    Make the gradients of local losses those of their sum over all processes: after the last backward pass of a step,
    once, before :func:`clip_grad_norm_` and the optimiser. Every process has to call it.

    The exchange has brought an expert the gradients of the processes that share its copy, so experts are added up over
    copies, and everything else over all processes. A parameter without a gradient counts as zero where another process
    has one, and keeps none where nobody has.

    :param experts_only: where :func:`data_parallel` or ``fully_shard`` sees to the rest.
    """
    experts = expert_parameters(network)
    for _, part in divided_experts(network):
        if part.layout.num_copies > 1:
            _sum(list(part.local.parameters()), part.layout.copies)
    if not experts_only and dist.is_initialized() and dist.get_world_size() > 1:
        _sum([parameter for parameter in network.parameters() if parameter not in experts], None)


def data_parallel(network: nn.Module, **options: Any) -> DistributedDataParallel:
    """
    ``DistributedDataParallel`` for all but the divided experts. It *sums* gradients where torch's own averages them,
    for losses that are local sums over the global number of datapoints. Experts are left to
    ``sum_gradients(network, experts_only=True)``.

    In gradient accumulation all micro-steps but the last run under ``no_sync()``: what is added up already would be
    added up again, which is an error.

    :param options: of ``DistributedDataParallel``.
    """
    names = [f"{name}.local.{inner}" for name, part in divided_experts(network) for inner in part.local.state_dict()]
    names = [name.removeprefix(".") for name in names]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, names)
    # What a process has counted, or its experts remember, is its own.
    known = signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    wrapped = DistributedDataParallel(network, **{buffers: False, **options})
    wrapped.register_comm_hook(None, _summed)
    dense = [parameter for parameter in network.parameters() if parameter not in expert_parameters(network)]
    synchronised = False

    def check(module: nn.Module, inputs: Any) -> None:
        nonlocal synchronised
        if not torch.is_grad_enabled():
            return
        if synchronised and any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in dense):
            raise RuntimeError(
                "gradients that are added up over processes already would be added up again: run all micro-steps but "
                "the last under no_sync(), and zero_grad() after the optimiser's step"
            )
        synchronised = wrapped.require_backward_grad_sync

    wrapped.register_forward_pre_hook(check)
    return wrapped


@torch.no_grad()
def clip_grad_norm_(network: nn.Module, max_norm: float, norm_type: float = 2.0) -> Tensor:
    """
    Scale gradients down to a total norm, as ``torch.nn.utils.clip_grad_norm_`` does on one process: each expert counts
    once, however many copies there are, and a ``DTensor`` of ``fully_shard`` with all its shards. The same on any
    number of processes. Every process has to call it, after :func:`sum_gradients`.

    :param max_norm: at most.
    :param norm_type: p of the p-norm, ``math.inf`` for the largest entry.
    :returns: the norm before.
    :raises ValueError: if ``max_norm`` is not positive, or the norm is not one.
    """
    if not max_norm > 0 or not norm_type > 0:
        raise ValueError(f"max_norm and norm_type must be positive, got {max_norm!r} and {norm_type!r}")
    divided = expert_parameters(network)
    dense = [parameter.grad for parameter in network.parameters() if parameter not in divided]
    parts = [_over_shards(grad, norm_type) for grad in dense if grad is not None]
    for _, experts in divided_experts(network):
        own = [
            _power(parameter.grad, norm_type) for parameter in experts.local.parameters() if parameter.grad is not None
        ]
        total = _total(own, norm_type, like=next(iter(experts.local.parameters()), torch.empty(0)))
        parts.append(_reduced(total, norm_type, experts.layout.pieces))
    norm = _total(parts, norm_type, like=next(iter(network.parameters()), torch.empty(0)))
    norm = norm if norm_type == math.inf else norm ** (1 / norm_type)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in network.parameters():
        if parameter.grad is not None:
            grad = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            grad.mul_(scale.to(grad.dtype))
    return norm


def sum_counts(counts: Iterable[Tensor]) -> None:
    """Add up what every process has counted, in place."""
    for count in counts:
        dist.all_reduce(count)


def _summed(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _sum(parameters: list[nn.Parameter], group: ProcessGroup | None) -> None:
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not parameters:
        return
    device = parameters[0].device
    there = torch.tensor([parameter.grad is not None for parameter in parameters], device=device, dtype=torch.int32)
    dist.all_reduce(there, dist.ReduceOp.MAX, group=group)
    meant = [parameter for parameter, flag in zip(parameters, there.tolist()) if flag]
    for dtype in sorted({parameter.dtype for parameter in meant}, key=str):
        grads = []
        for parameter in meant:
            if parameter.dtype == dtype:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
        # One message for all of them.
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=group)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(part.view_as(grad))


def _power(grad: Tensor, norm_type: float) -> Tensor:
    """The p-th power of the norm; for infinity the norm."""
    if not grad.numel():
        return grad.new_zeros(())
    wide = torch.promote_types(grad.dtype, torch.float32)
    norm = torch.linalg.vector_norm(grad, norm_type, dtype=wide)
    return norm if norm_type == math.inf else norm**norm_type


def _over_shards(grad: Tensor, norm_type: float) -> Tensor:
    if not isinstance(grad, DTensor):
        return _power(grad, norm_type)
    power = _power(grad.to_local(), norm_type)
    for dimension, placement in enumerate(grad.placements):
        if isinstance(placement, Shard):
            power = _reduced(power, norm_type, grad.device_mesh.get_group(dimension))
    return power


def _reduced(power: Tensor, norm_type: float, group: ProcessGroup) -> Tensor:
    operation = dist.ReduceOp.MAX if norm_type == math.inf else dist.ReduceOp.SUM
    dist.all_reduce(power, operation, group=group)
    return power


def _total(powers: Iterable[Tensor], norm_type: float, like: Tensor) -> Tensor:
    powers = list(powers)
    if not powers:
        return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    stacked = torch.stack(powers)
    return stacked.max() if norm_type == math.inf else stacked.sum()
