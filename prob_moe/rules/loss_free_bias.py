"""Loss-free balancing: a bias that decides who is chosen, moved by the loads instead of a gradient."""

import warnings

import torch
from torch import Tensor

from prob_moe.distributions.support import expert_counts
from prob_moe.experts.validation import check_positive_int
from prob_moe.recomputation import recomputing
from prob_moe.rules.base import RoutingRule, SparseRouting, top_choices
from prob_moe.rules.losses import check_weight

#: in training mode without an update; no step has as many microbatches
CALLS_BEFORE_WARNING = 1000


class LossFreeBias(RoutingRule):
    r"""
    Experts are chosen by a biased score, and gated by the score without the bias:

    .. math:: y_i = \sum_{j \in \mathrm{top}_m(\sigma(\phi_i) + b)} \sigma(\phi_{ij}) f_j(x_i).

    In training mode a call counts its loads :math:`n_j`, choices that capacity drops included, and :meth:`update`,
    once per optimiser step, moves the bias by all that was counted since the last one:

    .. math:: b_j \leftarrow b_j + u\, \mathrm{sign}(\bar n - n_j).

    So no datapoint influences its own routing, several calls (microbatches) make one step, and a forward pass that
    autograd runs again (activation checkpointing) routes as the first did and counts nothing. Evaluation mode counts
    nothing either. **Without** :meth:`update` **the bias never moves.** b is a buffer: it is saved with the module, and
    never gets a gradient; the counts are not saved. Keep b in float32, also beside logits of bfloat16, whose numbers
    lie too far apart for steps of 1e-3.

    **Objective:** its own deterministic model, the loss of this y with the choices fixed, for which the gradient
    through the gates is exact almost everywhere. **Bias** for any objective over routings: as with
    :class:`~prob_moe.rules.Switch`, experts that are not chosen and the probability of choosing do not enter.

    **Source:** Wang, Gao, Zhao, Sun & Dai (2024), "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
    algorithm 1; the sigmoid and the rate are DeepSeek's.

    :param num_experts: k.
    :param num_selected: m, experts per datapoint.
    :param rate: u, >= 0.
    :param batch_shape: leading dimensions of independent models, each with a bias of its own; loads are summed over
        further leading dimensions of the logits.
    :param capacity: the most datapoints of one batch that an expert processes, over all m choices; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :param bias: b, (*batch_shape, k).
    :raises ValueError: if a size is not a positive int, the rate is negative, m exceeds k, or at the call the logits
        do not have the shape (*batch, *batch_shape, n, k).
    """

    objective = "deterministic L(sum_top sigma_j f_j), the choices fixed"

    bias: Tensor
    #: choices of every expert since the last update, long (*batch_shape, k)
    counts: Tensor

    def __init__(
        self,
        num_experts: int,
        *,
        num_selected: int = 1,
        rate: float = 1e-3,
        batch_shape: tuple[int, ...] = (),
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_positive_int("num_experts", num_experts)
        check_positive_int("num_selected", num_selected)
        check_weight("rate", rate)
        self.num_selected = num_selected
        self.rate = rate
        self.register_buffer("bias", torch.zeros(*batch_shape, num_experts))
        self.register_buffer("counts", torch.zeros(*batch_shape, num_experts, dtype=torch.long), persistent=False)
        self._calls = 0  # since the last update

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        logits, mask = self.prepare(logits, mask)
        models = self.bias.shape[:-1]
        if logits.shape[-1:] != self.bias.shape[-1:] or logits.shape[-2 - len(models) : -2] != models:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} must have shape (*batch, *batch_shape, n, k) with batch_shape "
                f"{tuple(models)} and k = {self.bias.shape[-1]} as given to LossFreeBias"
            )
        score = logits.sigmoid()
        biased = (score.detach() + self.bias.unsqueeze(-2)).masked_fill(logits == -torch.inf, -torch.inf)
        choices = top_choices(biased, self.num_selected)
        gate = torch.gather(score.mT, -2, choices)
        if self.training and not recomputing():
            self._count(choices, mask)
        return self.to_experts(logits, mask, choices, gate)

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.mT.gather(-2, choices).sigmoid(), None

    @property
    def counted(self) -> tuple[Tensor, ...]:
        return (self.counts,)

    @property
    def waits_for_update(self) -> bool:
        return self.rate > 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the bias by the loads since the last update; after the backward pass, once per optimiser step."""
        # Mean minus load, times k: counts stay whole, and their sign exact.
        loads = self.counts
        self.bias += self.rate * (loads.sum(-1, keepdim=True) - loads.shape[-1] * loads).sign()
        self.counts.zero_()
        self._calls = 0

    @torch.no_grad()
    def _count(self, choices: Tensor, mask: Tensor | None) -> None:
        counted = torch.ones_like(choices, dtype=torch.bool) if mask is None else mask.unsqueeze(-2).expand_as(choices)
        loads = expert_counts(choices.flatten(-2), counted.flatten(-2), self.bias.shape[-1])
        self.counts += loads.sum_to_size(self.bias.shape)
        self._calls += 1
        if self._calls == CALLS_BEFORE_WARNING and self.rate > 0:
            warnings.warn(
                f"LossFreeBias was called {self._calls} times in training mode and never updated, so its bias stays "
                "as it is; call router.update() once per optimiser step",
                stacklevel=3,
            )
