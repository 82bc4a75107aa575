"""GShard's top-2: the second expert kept at random, in proportion to its gate."""

import torch
from torch import Tensor

from prob_moe.distributions.noise import uniform_noise
from prob_moe.rules.base import RoutingRule, SparseRouting, top_choices
from prob_moe.rules.choices import assign_choices, renormalised_gates
from prob_moe.rules.losses import check_weight, load_balancing_loss


class GShard(RoutingRule):
    r"""
    The two most probable experts a and b of every datapoint, the second one kept with probability :math:`2 g_{ib}`:

    .. math:: y_i = g_{ia} f_a(x_i) + \xi_i\, g_{ib} f_b(x_i), \qquad
        g_{ij} = \frac{p_{ij}}{p_{ia} + p_{ib}}, \quad \xi_i \sim \mathrm{Bernoulli}(2 g_{ib}),\quad
        p_i = \mathrm{softmax}(\phi_i).

    The gates are renormalised over both experts before anything is dropped, and not again. All first choices take
    places before all second ones; a second choice that is not kept takes none. In serving both are kept. The loss is
    ``load_balancing`` times :func:`~prob_moe.rules.load_balancing_loss`, whose loads are the first choices, dropped
    ones included. Where one expert alone has a finite logit, it is the output.

    **Objective:** the expected loss :math:`E_\xi[L(y)]` of its own output. **Gradient:** through the gates. **Bias:**
    neither the probability of keeping nor the jumps of the selection enter. Biased for the router objective. **Cost**
    two experts per datapoint.

    **Source:** Lepikhin et al. (2021), "GShard: scaling giant models with conditional computation and automatic
    sharding", algorithm 1. There a second choice is counted whether or not it is kept, so that one that is not may keep
    another from its place; here, as in the authors' code, it is not.

    :param load_balancing: weight of the load-balancing loss.
    :param capacity: the most datapoints of one batch that an expert processes, over both choices; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k); the authors have 2. Without either there is no
        limit.
    :raises ValueError: if the weight is negative, or at the call there is one expert only.

    >>> routing = GShard().eval()(torch.tensor([[0.5, 0.3, 0.2]]).log())
    >>> routing.gate
    tensor([[0.6250],
            [0.3750]])
    """

    objective = "its own output's expected loss, the second expert kept at random"

    def __init__(
        self,
        *,
        load_balancing: float = 1e-2,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_weight("load_balancing", load_balancing)
        self.load_balancing = load_balancing

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        """
        :raises ValueError: on a wrong dtype or shape, and on fewer than two experts.
        """
        logits, mask = self.prepare(logits, mask)
        capacity, slots = self.capacity_of(logits, mask)
        choices = top_choices(logits.detach(), 2)
        gate, _ = self.gates(logits, choices)
        kept = logits.mT.gather(-2, choices) > -torch.inf
        if self.training:
            kept = torch.stack([kept[..., 0, :], kept[..., 1, :] & self.keeps(gate[..., 1, :])], -2)
        return SparseRouting(
            assign_choices(choices, kept, capacity, logits.shape[-1], mask),
            gate,
            slots,
            self.load_balancing * load_balancing_loss(logits, choices[..., 0, :], mask),
        )

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return renormalised_gates(logits, choices), None

    @staticmethod
    def keeps(gate: Tensor) -> Tensor:
        """
        :param gate: of the second expert, (*batch, n).
        :returns: a draw of who keeps it, bool (*batch, n).
        """
        return uniform_noise(gate.shape, gate.device, dtype=torch.float32) < 2 * gate.detach()
