"""Rows that change places between processes, and whose gradients go back the same way."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad


class _Exchange(torch.autograd.Function):
    # With equal pieces each way the exchange is a symmetric permutation: its own inverse, and so its own adjoint.
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        rows = rows.contiguous()
        arrived = torch.empty_like(rows)
        dist.all_to_all_single(arrived, rows, group=group)
        return arrived

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return exchange(grad, ctx.group), None


def exchange(rows: Tensor, group: ProcessGroup) -> Tensor:
    """
    Give piece j of the rows to process j of a group, and get its piece for this process: one ``all_to_all_single``.
    Every process of the group has to call it, with rows of one shape and dtype.

    :param rows: (p, ...) for the p processes of the group.
    :returns: in the same shape: piece j came from process j. Differentiable any number of times.
    """
    out: Tensor = _Exchange.apply(rows, group)  # type: ignore[no-untyped-call]
    return out


def by_process(rows: Tensor, num_processes: int) -> Tensor:
    """
    :param rows: of k experts, (k, ...).
    :returns: (p, ceil(k/p), ...): those of each process, as :meth:`~prob_moe.parallel.mesh.Layout.share` divides them,
        with zeros for the expert that a process has less than others.
    """
    least, more = divmod(rows.shape[0], num_processes)
    if not more:
        return rows.unflatten(0, (num_processes, least))
    full, rest = rows.split([more * (least + 1), rows.shape[0] - more * (least + 1)])
    full = full.unflatten(0, (more, least + 1))
    return torch.cat([full, one_more(rest.unflatten(0, (num_processes - more, least)))])


def from_processes(pieces: Tensor, num_experts: int) -> Tensor:
    """:returns: the rows (k, ...) of which :func:`by_process` makes these pieces."""
    num_processes, most = pieces.shape[:2]
    more = num_experts % num_processes
    if not more:
        return pieces.flatten(0, 1)
    return torch.cat([pieces[:more].flatten(0, 1), pieces[more:, : most - 1].flatten(0, 1)])


def one_more(pieces: Tensor) -> Tensor:
    """
    :param pieces: (p, e, ...).
    :returns: (p, e + 1, ...), zeros at the end.
    """
    return pad(pieces, (0, 0) * (pieces.dim() - 2) + (0, 1))
