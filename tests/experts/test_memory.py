"""Memory grows with the data, n·d + k·c·h numbers, and not with n·k or with n·k·c."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prob_moe.experts import BatchedExperts

D, H = 4, 8


class _Allocations(TorchDispatchMode):
    """Bytes of all tensors that operations create, and of the largest one."""

    def __init__(self):
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or func._schema.is_mutable):
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.total += tensor.nbytes
                    self.largest = max(self.largest, tensor.nbytes)
        return out


def _allocations(n, k):
    """Of a forward and backward pass at capacity factor 1, with respect to the data."""
    layer = BatchedExperts(k, D, H, D, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(n, D, dtype=torch.float64, requires_grad=True)
    assignment = torch.randperm(n) % k
    with _Allocations() as allocations:
        layer(x, assignment, capacity=n // k).sum().backward()
    return allocations


def test_largest_tensor_is_the_hidden_layer():
    assert _allocations(4096, 64).largest == 8 * 4096 * H


def test_total_is_linear_in_datapoints_and_constant_in_experts():
    few, many = _allocations(1024, 8).total, _allocations(4096, 8).total
    assert 3.9 * few < many < 4.1 * few
    assert _allocations(4096, 64).total < 1.02 * many
