"""Soft MoE: experts process mixtures of datapoints."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_features, check_positive_int
from prob_moe.rules.base import Routing, RoutingRule


@dataclass(frozen=True)
class SoftRouting(Routing):
    r"""
    Slot t of expert j processes a mixture of datapoints, and a datapoint's output is a mixture of slots:
    :math:`y_i = \sum_{jt} C_{ijt} f_j\big(\sum_{i'} D_{i'jt} x_{i'}\big)`.

    :param dispatch: D, (*batch, n, k, p); sums to 1 over n.
    :param combine: C, (*batch, n, k, p); sums to 1 over k and p. Both are 0 for padding.
    :param mask: bool (*batch, n), False for padding; None without.
    :param loss: (*batch).
    """

    dispatch: Tensor
    combine: Tensor
    mask: Tensor | None
    loss: Tensor

    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        *batch, n, k, p = self.dispatch.shape
        check_features("x", x, (n, experts.in_features or x.shape[-1]), torch.Size(batch))
        x = x.expand(*batch, *x.shape[-2:])
        if self.mask is not None:
            x = x.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        slots = (self.dispatch.flatten(-2).mT @ x).unflatten(-2, (k, p))
        out = experts.forward_dispatched(slots)
        if experts.residual:
            out = out + slots
        return self.combine.flatten(-2) @ out.flatten(-3, -2)


class SoftMoE(RoutingRule):
    r"""
    Nothing is assigned: with logits :math:`s_{ijt}` for every slot t of every expert j,

    .. math::
        y_i = \sum_{jt} C_{ijt}\, f_j\Big(\sum_{i'} D_{i'jt}\, x_{i'}\Big), \qquad
        D_{\cdot jt} = \mathrm{softmax}_i(s_{ijt}), \quad C_{i \cdot\cdot} = \mathrm{softmax}_{jt}(s_{ijt}).

    **It leaks the future:** every output depends on every datapoint of the batch. It is for encoders.

    **Objective:** the loss of this other, deterministic model, for which the gradient is exact, to the router too. It
    is not the router objective: experts never see a datapoint, but mixtures. **Cost** k p rows of experts, whatever
    n, and O(n k p d) for the mixtures. There is no capacity, and nothing is dropped.

    Source: Puigcerver, Riquelme, Mustafa & Houlsby (2023), "From sparse to soft mixtures of experts". The
    authors make the logits as scaled products of normalised datapoints and normalised slot parameters;
    that is the business of the module which makes the logits.

    :param slots_per_expert: p. The logits are (*batch, n, k p), with the slots of an expert side by side.

    >>> routing = SoftMoE(slots_per_expert=2)(torch.zeros(4, 6))
    >>> routing.dispatch.shape, routing.dispatch[0, 0, 0].item()
    (torch.Size([4, 3, 2]), 0.25)
    """

    objective = "the loss of the soft model"

    def __init__(self, *, slots_per_expert: int = 1) -> None:
        super().__init__()
        check_positive_int("slots_per_expert", slots_per_expert)
        self.slots_per_expert = slots_per_expert

    def num_logits(self, num_experts: int) -> int:
        """One for every slot."""
        return num_experts * self.slots_per_expert

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SoftRouting:
        """
        :raises ValueError: on a wrong dtype or shape, and if the slots do not divide the last dimension.
        """
        logits, mask = self.prepare(logits, mask)
        if logits.shape[-1] % self.slots_per_expert:
            raise ValueError(
                f"logits must have k * slots_per_expert columns, but have shape {tuple(logits.shape)} "
                f"with slots_per_expert={self.slots_per_expert}"
            )
        slots = (-1, self.slots_per_expert)
        combine = logits.softmax(-1)
        if mask is None:
            dispatch = logits.softmax(-2)
        else:
            absent = ~mask.unsqueeze(-1)
            # Without any datapoint a softmax over -inf would be NaN.
            lowest = torch.finfo(logits.dtype).min
            dispatch = logits.masked_fill(absent, lowest).softmax(-2).masked_fill(absent, 0.0)
            combine = combine.masked_fill(absent, 0.0)
        return SoftRouting(
            dispatch.unflatten(-1, slots), combine.unflatten(-1, slots), mask, logits.new_zeros(logits.shape[:-2])
        )
