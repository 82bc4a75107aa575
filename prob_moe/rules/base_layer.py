"""BASE: a balanced matching in training, the best expert in serving."""

import torch
from torch import Tensor

from prob_moe.numerics import solve_assignment
from prob_moe.rules.base import RoutingRule, SparseRouting


class BASELayer(RoutingRule):
    r"""
    Experts are assigned by the balanced matching of largest total logit; its gate says how far the expert is mixed in:

    .. math::
        z = \arg\max_z \sum_i s_{i z_i} \text{ with at most } c \text{ datapoints per expert (in training)},\quad
        z_i = \arg\max_j s_{ij} \text{ (in serving)}, \\
        y_i = \alpha_i f_{z_i}(x_i) + (1 - \alpha_i) x_i, \qquad \alpha_i = \sigma(s_{i z_i}).

    The matching is that of the logits as they are, without noise, and exact, where the authors' auction is not. In
    serving there is no limit on the loads. The authors' experts contain the residual connection, as
    :class:`~prob_moe.experts.BatchedExperts` does with ``residual=True``; then :math:`y = x + \alpha g(x)`, the
    form of the paper.

    **Objective:** the loss of its own output, where the matching of the whole batch chooses the expert. **Gradient:**
    through :math:`\alpha_i` only, the derivative where the matching does not change: it says whether the chosen
    expert should be mixed in more, never whether another would have been better. Biased for the router objective and
    for the balanced objective; exact for its own where no assignment changes. **Cost** O(nk) memory and a CPU solver
    in training; every expert has n slots in serving. The matching looks at all datapoints of the batch, the future of
    a sequence too; serving does not.

    Source: Lewis, Bhosale, Dettmers, Goyal & Zettlemoyer (2021), "BASE layers: simplifying training of large, sparse
    models".

    :param capacity: slots of an expert in training; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k); 1, the tightest, if neither is given.
    :param carry: whether to mix the input into the output. Without, :math:`y_i = \alpha_i f_{z_i}(x_i)`, for experts
        whose output has other features than the input.

    >>> router = BASELayer()
    >>> router(torch.tensor([[5.0, 4.0], [3.0, 0.0]])).assignment
    tensor([[1, 0]])
    >>> router.eval()(torch.tensor([[5.0, 4.0], [3.0, 0.0]])).assignment
    tensor([[0, 0]])
    """

    objective = "its own output's loss, experts fixed by the matching"

    def __init__(
        self, *, capacity: int | None = None, capacity_factor: float | None = None, carry: bool = True
    ) -> None:
        if capacity is None and capacity_factor is None:
            capacity_factor = 1.0
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        self.carry = carry

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, Tensor | None]:
        alpha = logits.mT.gather(-2, choices).sigmoid()
        return alpha, 1 - alpha.squeeze(-2) if self.carry else None

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        """
        :raises ValueError: on a wrong dtype or shape; in training on NaN, and on more datapoints than slots.
        """
        logits, mask = self.prepare(logits, mask)
        *batch, n, _ = logits.shape
        if self.training:
            capacity, slots = self.capacity_of(logits, mask)
            assignment = solve_assignment(logits, capacity, mask=mask).assignment
        else:
            slots = max(1, n)
            assignment = logits.argmax(-1)
            if mask is not None:
                assignment = assignment.masked_fill(~mask, -1)
        alpha = logits.gather(-1, assignment.clamp(min=0).unsqueeze(-1)).squeeze(-1).sigmoid()
        carried = 1 - alpha if mask is None else torch.where(mask, 1 - alpha, 0.0)
        return SparseRouting(
            assignment.unsqueeze(-2),
            alpha.unsqueeze(-2),
            slots,
            logits.new_zeros(batch),
            carried if self.carry else None,
        )
