"""An assignment distribution of one's own, in one file."""

import torch
from torch import Tensor

from inference.registry import ProcedureEntry, Registry
from prob_moe.distributions import AssignmentDistribution


class SpacedSkip(AssignmentDistribution):
    r"""
    Datapoints choose independently, :math:`z_i \sim p_i`; of the n_j that chose expert j, those are kept that stand at
    even distances in their order, from a random start on: systematic sampling. Everybody is kept with probability
    :math:`\min(1, c / n_j)`, hence

    .. math:: w_i = \mathrm{processed}_i \cdot \max(1, n_{z_i} / c).

    Who is kept depends on the order of the datapoints, and there is no ``log_prob``. Cost O(nk).

    Source: Madow & Madow (1944), "On the theory of systematic sampling, I".
    """

    drops = True

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        choices = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
        chosen, counts = self._who_chose_whom(choices)
        # Of n_j in a circle, every c-th of n_j steps starts anew: exactly c do.
        rank = chosen.cumsum(-2) - 1
        start = (torch.rand(counts.shape, device=counts.device) * counts).long()
        kept = (rank * self.capacity[..., None, None] + start) % counts.clamp(min=1) < self.capacity[..., None, None]
        value = torch.where((kept & (chosen > 0)).any(-1), choices, ~choices)
        return value if self.mask is None else value.masked_fill(~self.mask, -1)

    def log_weights(self, value: Tensor) -> Tensor:
        choices = torch.where(value >= 0, value, ~value)
        _, counts = self._who_chose_whom(choices)
        overflow = (counts.squeeze(-2).double() / self.capacity.unsqueeze(-1)).clamp(min=1.0).log()
        return overflow.gather(-1, choices).masked_fill(value < 0, -torch.inf)

    @property
    def mode(self) -> Tensor:
        return self._best_within_capacity()

    def _who_chose_whom(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Long (*, n, k), 1 where a datapoint that is present chose an expert, and the counts, (*, 1, k)."""
        chosen = torch.nn.functional.one_hot(choices, self.num_experts)
        if self.mask is not None:
            chosen = chosen * self.mask.unsqueeze(-1)
        return chosen, chosen.sum(-2, keepdim=True)


def register(registry: Registry) -> None:
    words = "every datapoint draws its expert; what exceeds the capacity is dropped at even distances"
    registry.add(ProcedureEntry("spaced skip", SpacedSkip, words, has_law=False))
