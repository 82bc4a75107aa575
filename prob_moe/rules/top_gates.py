"""Top-m gating: the sum of a datapoint's m most probable experts, with gates that sum to 1."""

import torch
from torch import Tensor

from prob_moe.experts.validation import check_positive_int
from prob_moe.rules.base import RoutingRule, SparseRouting, top_choices
from prob_moe.rules.choices import assign_choices, renormalised_gates
from prob_moe.rules.losses import check_weight, load_balancing_loss


class TopGates(RoutingRule):
    r"""
    The m most probable experts, gated by their probabilities, renormalised over these m:

    .. math:: y_i = \sum_{j \in \mathrm{top}_m(\phi_i)} g_{ij} f_j(x_i), \qquad
        g_{ij} = \frac{p_{ij}}{\sum_{l \in \mathrm{top}_m(\phi_i)} p_{il}}, \quad p_i = \mathrm{softmax}(\phi_i).

    All first choices take places before all second ones. An expert that drops a datapoint contributes 0 to it, and the
    gates of its other experts stay as they are: they are not renormalised again. Where fewer than m experts have a
    finite logit, fewer are summed. The loss is ``load_balancing`` times :func:`~prob_moe.rules.load_balancing_loss`,
    whose loads are all m choices, dropped ones included: constant for m = k, Switch's for m = 1. Training and serving
    agree.

    **Objective:** the loss of its own, deterministic output. **Gradient:** through the gates; exact but for the jumps
    of the selection, which it does not see; for m = k it is the dense mixture and has none. For m = 1 every gate is 1,
    and only the load-balancing loss reaches the router. Biased for the router objective. **Cost** m experts per
    datapoint, O(nk) to select.

    **Source:** Shazeer et al. (2017), "Outrageously large neural networks: the sparsely-gated mixture-of-experts
    layer", eqs. 3-5, without the noise; places in that order for m = 2: Lepikhin et al. (2021), "GShard", algorithm 1,
    which also drops second choices at random and takes the loads of the loss from first choices only:
    :class:`~prob_moe.rules.GShard`.

    :param num_selected: m, the experts per datapoint.
    :param load_balancing: weight of the load-balancing loss.
    :param capacity: the most datapoints of one batch that an expert processes, over all m choices; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k), whatever m: to give every choice a place at
        balance takes a factor of m. Without either there is no limit.
    :raises ValueError: if an option is out of its range.

    >>> routing = TopGates()(torch.tensor([[0.5, 0.3, 0.2]]).log())
    >>> routing.assignment
    tensor([[0],
            [1]])
    >>> routing.gate
    tensor([[0.6250],
            [0.3750]])
    """

    objective = "its own output's loss"

    def __init__(
        self,
        *,
        num_selected: int = 2,
        load_balancing: float = 1e-2,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_positive_int("num_selected", num_selected)
        check_weight("load_balancing", load_balancing)
        self.num_selected = num_selected
        self.load_balancing = load_balancing

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        """
        :raises ValueError: on a wrong dtype or shape, and on fewer experts than ``num_selected``.
        """
        logits, mask = self.prepare(logits, mask)
        capacity, slots = self.capacity_of(logits, mask)
        choices = top_choices(logits.detach(), self.num_selected)
        allowed = logits.mT.gather(-2, choices) > -torch.inf
        # The loss is linear in the loads, so that of all choices is the mean over first, second, ... ones.
        balance = load_balancing_loss(logits, choices.movedim(-2, 0), mask, counted=allowed.movedim(-2, 0)).mean(0)
        return SparseRouting(
            assign_choices(choices, allowed, capacity, logits.shape[-1], mask),
            self.gates(logits, choices)[0],
            slots,
            self.load_balancing * balance,
        )

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return renormalised_gates(logits, choices), None
