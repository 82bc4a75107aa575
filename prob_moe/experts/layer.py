"""The expert layer as a module: stacked parameters, an assignment, outputs in the order of the datapoints."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prob_moe.experts.base import Experts
from prob_moe.experts.functional import batched_linear, expert_forward
from prob_moe.experts.plan import expert_loads, room_for_all
from prob_moe.experts.sorting import sorted_experts, sorting_pays
from prob_moe.experts.validation import (
    check_plan_shapes,
    check_plan_values,
    check_positive_int,
    should_check_values,
)


class BatchedLinear(nn.Module):
    """
    One linear map for each of k experts: :func:`~prob_moe.experts.batched_linear` with its parameters.

    :param num_experts: k.
    :param in_features: d.
    :param out_features: h.
    :param bias: whether to add a bias.
    :param batch_shape: leading dimensions of independent sets of experts.
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        batch_shape: tuple[int, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        lead = (*batch_shape, num_experts)
        self.weight = nn.Parameter(torch.empty(*lead, in_features, out_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(*lead, out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/√d, 1/√d), as :class:`torch.nn.Linear` does for each expert alone."""
        bound = 1 / math.sqrt(self.weight.shape[-2])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """
        :param inputs: (*batch, k, c, d), where the last dimensions of the batch are ``batch_shape``.
        :returns: (*batch, k, c, h).
        """
        return batched_linear(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        *batch_shape, k, d, h = self.weight.shape
        stacked = f", batch_shape={tuple(batch_shape)}" if batch_shape else ""
        return f"num_experts={k}, in_features={d}, out_features={h}, bias={self.bias is not None}{stacked}"


class BatchedExperts(Experts):
    """
    k experts, y_i = f_{e(i)}(x_i), each applied to the datapoints that an assignment gives to it.

    An expert is linear, or has one hidden layer: f_e(x) = activation(x W_e + b_e) V_e + a_e. With a capacity shapes are
    fixed, (k, c, d) whatever the assignment, so a step costs two batched matrix products of k·c rows and two gathers;
    it is deterministic, never waits for the device (but for the optional checks), and compiles without a graph break.
    Without, the cost follows the datapoints: the loads are looked at, and the products have as many rows as the largest
    load wants of every expert, or, on the processor where it is faster, those of the datapoints and no others. Leading
    dimensions of the data share the parameters.

        >>> layer = BatchedExperts(num_experts=4, in_features=8, hidden_features=32, out_features=3)
        >>> assignment = torch.tensor([0, 3, ~3, 0, 2])  # the third datapoint was dropped
        >>> y = layer(torch.randn(5, 8), assignment, capacity=2)
        >>> y.shape, bool((y[2] == 0).all())
        (torch.Size([5, 3]), True)

    :param num_experts: k.
    :param in_features: d.
    :param hidden_features: h, or None for linear experts.
    :param out_features: features of an expert's output.
    :param activation: callable between the layers, elementwise.
    :param bias: whether the layers have biases.
    :param residual: whether to add x to the output; dropped datapoints then pass through unchanged.
    :param batch_shape: leading dimensions of independent sets of experts: with ``batch_shape=(s,)``, assignments of
        shape (*batch, s, n) train s models at once.
    :raises ValueError: a size is not a positive int, or ``residual`` with different numbers of features.
    """

    in_features: int

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        hidden_features: int | None,
        out_features: int,
        *,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        bias: bool = True,
        residual: bool = False,
        batch_shape: tuple[int, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_experts": num_experts, "in_features": in_features, "out_features": out_features}
        if hidden_features is not None:
            sizes["hidden_features"] = hidden_features
        for name, size in sizes.items():
            check_positive_int(name, size)
        if residual and in_features != out_features:
            raise ValueError(
                f"residual=True adds the input to the output, but in_features={in_features} differs from "
                f"out_features={out_features}; make them equal"
            )
        self.num_experts = num_experts
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.activation = activation
        self.residual = residual
        self.batch_shape = torch.Size(batch_shape)

        def linear(inputs: int, outputs: int) -> BatchedLinear:
            return BatchedLinear(
                num_experts, inputs, outputs, bias=bias, batch_shape=self.batch_shape, device=device, dtype=dtype
            )

        self.hidden = None if hidden_features is None else linear(in_features, hidden_features)
        self.output = linear(hidden_features or in_features, out_features)

    def _check_shapes(self, x: Tensor, assignment: Tensor, batch: torch.Size) -> None:
        if tuple(batch[len(batch) - len(self.batch_shape) :]) != self.batch_shape:
            raise ValueError(
                f"assignment must have shape (*batch, {', '.join(map(str, self.batch_shape))}, n) for experts of "
                f"batch_shape {tuple(self.batch_shape)}, but has shape {tuple(assignment.shape)}; use assignment.expand"
            )
        super()._check_shapes(x, assignment, batch)

    def _with_room_for_all(
        self, x: Tensor, entries: Tensor, present: Tensor | None, num_selected: int, validate_args: bool | None
    ) -> Tensor:
        check_plan_shapes(entries, self.num_experts, 1, present)
        loads = expert_loads(entries, self.num_experts, present)
        weights = self._weights()
        if not sorting_pays(loads, [weight for weight in weights[::2] if weight is not None]):
            return self._in_slots(x, entries, present, room_for_all(loads), num_selected, validate_args)
        if should_check_values(entries, validate_args):
            check_plan_values(entries, loads, entries.shape[-1], present)
        return sorted_experts(x, entries, present, *weights, self.activation, num_selected)

    def forward_dispatched(self, inputs: Tensor) -> Tensor:
        return expert_forward(inputs, *self._weights(), self.activation)

    def _weights(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """What :func:`expert_forward` takes: weight and bias of the hidden layer, and of the output."""
        hidden = (None, None) if self.hidden is None else (self.hidden.weight, self.hidden.bias)
        return (*hidden, self.output.weight, self.output.bias)

    def dense(self, x: Tensor) -> Tensor:
        """
        Every expert on every datapoint, for exact gradients and soft mixtures. Costs k times a forward pass.

        :param x: (*batch, n, d); leading dimensions broadcast with ``batch_shape``.
        :returns: (*batch, n, k, out_features).
        """
        if x.dim() < 2 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (*batch, n, {self.in_features}), but has shape {tuple(x.shape)}")
        out = self.forward_dispatched(x.unsqueeze(-3)).movedim(-3, -2)
        return x.unsqueeze(-2) + out if self.residual else out

    def extra_repr(self) -> str:
        return f"activation={getattr(self.activation, '__name__', self.activation)}, residual={self.residual}"
