"""The sampled gate: Switch with a draw in place of the argmax."""

from torch import Tensor

from prob_moe.distributions.noise import gumbel_noise_like
from prob_moe.rules.switch import Switch


class SampledGate(Switch):
    r"""
    Every datapoint draws its expert, which is gated by its probability:

    .. math:: y_i = p_{i e}\, f_e(x_i), \qquad e \sim p_i = \mathrm{softmax}(\phi_i).

    Capacity and losses as in :class:`~prob_moe.rules.Switch`. Serving takes the argmax.

    **Objective:** gated, :math:`E_{z\sim p}[L(p_z f_z)]`. Its gradient has two parts,

    .. math:: \sum_j L(p_j f_j) \nabla p_j + \sum_j p_j \langle L'(p_j f_j), f_j \rangle \nabla p_j,

    and the gate carries the second alone. **Bias:** the first, the score part, is missing; where gates are small the
    two are about equal, so about half of the gradient is. **Exact for** the second part.

    **Source:** ``RSample``, a policy of top-1 gating in DeepSpeed's ``sharded_moe.py``, by Gumbel-max.

    Parameters as :class:`~prob_moe.rules.Switch`.
    """

    objective = "gated E_z[L(p_z f_z)]"

    def choose(self, logits: Tensor) -> Tensor:
        if not self.training:
            return super().choose(logits)
        return (logits.detach() + gumbel_noise_like(logits)).argmax(-1)
