"""Balancing by prices of the experts: the best m experts of every datapoint within capacity."""

from torch import Tensor

from prob_moe.experts.validation import check_positive_int
from prob_moe.numerics import solve_assignment
from prob_moe.rules.base import RoutingRule, SparseRouting, top_choices
from prob_moe.rules.choices import renormalised_gates


class QuantileBalancing(RoutingRule):
    r"""
    In training every datapoint has m experts, chosen for the largest total logit of the batch within capacity; in
    serving its m most probable ones:

    .. math:: (A_i) = \arg\max \sum_i \sum_{j \in A_i} \phi_{ij} \quad\text{with}\quad |A_i| = m,\
        \#\{i : j \in A_i\} \le c, \qquad
        y_i = \sum_{j \in A_i} g_{ij} f_j(x_i), \quad g_{ij} = \frac{p_{ij}}{\sum_{l \in A_i} p_{il}}.

    By duality there are prices :math:`v_j \ge 0` of the experts for which :math:`A_i` are the m largest
    :math:`\phi_{ij} - v_j`. Large systems find them approximately, :math:`v_j` as a quantile over the batch of how much
    j lacks to be selected, and take those of one step for the next; here the matching of the present batch is exact,
    by :func:`~prob_moe.numerics.solve_assignment`. The prices choose experts, and are in no gate.

    **Objective:** the loss of its own output, experts fixed by the matching. **Gradient:** through the gates; the
    derivative where the matching does not change. Biased for the router objective and for the balanced objective.
    **Cost** m experts per datapoint, O(nk) memory and a CPU solver in training. The matching looks at all datapoints of
    the batch, the future of a sequence too; serving does not.

    **Source:** Su (2026), "MoE travelogue 6: optimal assignment for load balancing", which large language models follow
    as quantile balancing; for m = 1 it is the matching of :class:`~prob_moe.rules.BASELayer`.

    :param num_selected: m, the experts per datapoint.
    :param capacity: the most datapoints of one batch that an expert has in training, over all m choices; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k); m, the tightest, if neither is given.
    :raises ValueError: if ``num_selected`` is not a positive int.

    >>> import torch
    >>> rule = QuantileBalancing(num_selected=1)
    >>> rule(torch.tensor([[5.0, 4.0], [3.0, 0.0]])).assignment
    tensor([[1, 0]])
    >>> rule.eval()(torch.tensor([[5.0, 4.0], [3.0, 0.0]])).assignment
    tensor([[0, 0]])
    """

    objective = "its own output's loss, experts fixed by the matching"

    def __init__(
        self, *, num_selected: int = 2, capacity: int | None = None, capacity_factor: float | None = None
    ) -> None:
        check_positive_int("num_selected", num_selected)
        if capacity is None and capacity_factor is None:
            capacity_factor = float(num_selected)
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        self.num_selected = num_selected

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        """
        :raises ValueError: on a wrong dtype or shape, and on fewer experts than ``num_selected``; in training where m
            choices of every datapoint exceed the slots, or -inf leaves a datapoint fewer than m experts.
        """
        logits, mask = self.prepare(logits, mask)
        choices = top_choices(logits.detach(), self.num_selected)
        slots = max(1, logits.shape[-2])
        if self.training:
            capacity, slots = self.capacity_of(logits, mask)
            choices = solve_assignment(logits, capacity, num_selected=self.num_selected, mask=mask).assignment
        elif mask is not None:
            choices = choices.masked_fill(~mask.unsqueeze(-2), -1)
        gate, _ = self.gates(logits, choices.clamp(min=0))
        return SparseRouting(choices, gate, slots, logits.new_zeros(logits.shape[:-2]))

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return renormalised_gates(logits, choices), None
