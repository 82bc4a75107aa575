"""SMEAR: one expert per datapoint, whose parameters are averaged."""

from dataclasses import dataclass

from torch import Tensor

from prob_moe.experts import BatchedExperts, BatchedLinear
from prob_moe.experts.validation import check_features
from prob_moe.rules.base import Routing, RoutingRule


@dataclass(frozen=True)
class MergedRouting(Routing):
    r"""
    Every datapoint is processed by one expert with averaged parameters: :math:`y_i = f(x_i; \sum_j w_{ij} \theta_j)`.

    :param weights: w, (*batch, n, k), or (*batch, 1, k) where all datapoints of a batch share one merged expert.
    :param num_datapoints: n.
    :param mask: bool (*batch, n), False for padding, whose output is 0; None without.
    :param loss: (*batch).
    """

    weights: Tensor
    num_datapoints: int
    mask: Tensor | None
    loss: Tensor

    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        batch = self.weights.shape[:-2]
        check_features("x", x, (self.num_datapoints, experts.in_features), batch)
        x = x.expand(*batch, *x.shape[-2:])
        if self.mask is not None:
            x = x.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        inputs = x
        if experts.hidden is not None:
            inputs = experts.activation(self._merged(experts.hidden, inputs))
        out = self._merged(experts.output, inputs)
        if experts.residual:
            out = x + out
        return out if self.mask is None else out.masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def _merged(self, linear: BatchedLinear, inputs: Tensor) -> Tensor:
        """The linear map of averaged parameters on its datapoints, (*batch, n, d) -> (*batch, n, h)."""
        k, d, h = linear.weight.shape[-3:]
        if self.weights.shape[-2] == 1 < self.num_datapoints:
            weight = (self.weights @ linear.weight.flatten(-2)).unflatten(-1, (d, h)).squeeze(-3)
            out = inputs @ weight
        else:
            # x (Σ w W) = (w ⊗ x) W: one product, and no matrix a datapoint.
            scaled = (self.weights.unsqueeze(-1) * inputs.unsqueeze(-2)).flatten(-2)
            out = scaled @ linear.weight.reshape(*linear.weight.shape[:-3], k * d, h)
        return out if linear.bias is None else out + self.weights @ linear.bias


class SMEAR(RoutingRule):
    r"""
    Soft merging of experts: no expert is chosen, their parameters :math:`\theta_j` are averaged,

    .. math:: y_i = f\Big(x_i;\, \sum_j p_{ij} \theta_j\Big), \qquad p_i = \mathrm{softmax}(s_i).

    **Objective:** the loss of this other, deterministic model, for which the gradient is exact, to the router too.
    Its hidden layer sits behind an average, so it is neither the mixture of the experts' outputs nor the router
    objective; only for linear experts it equals the dense mixture :math:`\sum_j p_{ij} f_j(x_i)`. **Cost:** with one
    merged expert a batch (``shared=True``) that of one expert plus the merge, :math:`O(k |\theta|)`; with one a
    datapoint as much as all k experts, in O(nkd) memory. There is no capacity.

    Source: Muqeeth, Liu & Raffel (2023), "Soft merging of experts with adaptive routing". The authors
    merge once for a whole example (``shared=True``), from the mean of its hidden states, which in a decoder leaks the
    future. Their expert dropout is left out.

    :param shared: whether all datapoints of a batch share one merged expert, with p the softmax of their mean logits.

    >>> import torch
    >>> SMEAR()(torch.zeros(2, 4)).weights
    tensor([[0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500]])
    """

    objective = "the loss of the merged model"
    merges_parameters = True

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> MergedRouting:
        """
        :raises ValueError: on a wrong dtype or shape.
        """
        logits, mask = self.prepare(logits, mask)
        *batch, n, _ = logits.shape
        if self.shared:
            count = max(n, 1) if mask is None else mask.sum(-1)[..., None, None].clamp(min=1)
            logits = logits.sum(-2, keepdim=True) / count
        weights = logits.softmax(-1)
        return MergedRouting(weights, n, mask, logits.new_zeros(batch))
