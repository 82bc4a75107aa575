"""Router, assignment distribution and experts: the one way from datapoints through a law to outputs."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.ops.provenance import detach_provenance
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution, SelectedMixture
from prob_moe.distributions.keyed_draws import Visit, draws_at
from prob_moe.distributions.support import router_choices
from prob_moe.estimators.baselines import Baseline
from prob_moe.estimators.sites import outside_plate
from prob_moe.experts.validation import check_positive_int
from prob_moe.layer.parts import baseline_infer, likelihood_of, slots_for
from prob_moe.parallel.experts import ParallelExperts
from prob_moe.rules.losses import check_weight, load_balancing_loss


@dataclass(frozen=True)
class Site:
    """
    An assignment site of a Pyro model, which stands outside of the plate of its datapoints.

    :param law: of batch shape (*batch, 1), or () without batches: dimension -1 is left to the data plate.
    :param value: what was drawn, (*, 1, n) or (*, 1, m, n), or without the 1; it carries its draw.
    """

    law: AssignmentDistribution
    value: Tensor

    def in_plate(self, entries: Tensor) -> Tensor:
        """:returns: a number for each entry of the value, lined up with the data plate: (*, n) or (*, m, n)."""
        return outside_plate(entries, len(self.law.event_shape))

    @property
    def assignment(self) -> Tensor:
        """The value, (*, n) or (*, m, n)."""
        return self.in_plate(self.value)


class RoutedExperts(nn.Module):
    """
    Base of what routes by an assignment distribution: :class:`~prob_moe.layer.ExpertLayer`,
    :class:`~prob_moe.mixture.MixtureOfExperts`, and models of one's own. It has no ``forward``.

    :param router: what gives the logits.
    :param experts: a :class:`~prob_moe.experts.BatchedExperts`, or a module with its ``forward`` and ``num_experts``.
    :param assignment: an assignment distribution, or a callable that makes one from logits, ``capacity``,
        ``capacity_factor`` and, where they are given, ``num_selected`` and ``mask``.
    :param capacity: the most datapoints that an expert processes in a batch element; or
    :param capacity_factor: capacity = ceil(capacity_factor * n m / k), padding not counted.
    :param num_selected: m distinct experts for every datapoint; None for one, and values without a dimension for them.
    :param slots: slots of an expert where there is no limit, or ``"load"`` for a cost that follows the datapoints.
    :param baseline: a :class:`~prob_moe.estimators.Baseline`, Pyro's ``infer["baseline"]`` options, or a module
        (*batch, n, d) -> (*batch, n), trained along.
    :param load_balancing: weight of :func:`~prob_moe.rules.load_balancing_loss` on expected shares.
    :raises ValueError: on arguments of a wrong kind or out of range.
    """

    def __init__(
        self,
        router: nn.Module,
        experts: Any,
        assignment: Callable[..., AssignmentDistribution] | None,
        *,
        capacity: int | None = None,
        capacity_factor: float | None = None,
        num_selected: int | None = None,
        slots: int | Literal["load"] = "load",
        baseline: Baseline | nn.Module | dict[str, Any] | None = None,
        load_balancing: float = 0.0,
    ) -> None:
        super().__init__()
        if capacity is not None and capacity_factor is not None:
            raise ValueError(f"give capacity or capacity_factor, not both (got {capacity} and {capacity_factor})")
        if num_selected is not None:
            check_positive_int("num_selected", num_selected)
        if slots != "load":
            check_positive_int("slots", slots)
        check_weight("load_balancing", load_balancing)
        baseline_infer(baseline, torch.empty(0))
        self.router, self.experts, self.assignment = router, experts, assignment
        self.capacity, self.capacity_factor, self.num_selected = capacity, capacity_factor, num_selected
        self.slots, self.baseline, self.load_balancing = slots, baseline, load_balancing

    def law(self, logits: Tensor, mask: Tensor | None = None) -> AssignmentDistribution:
        """
        :param logits: (*batch, n, k).
        :param mask: bool (*batch, n), or None.
        :raises ValueError: if ``assignment`` makes something else.
        """
        assert self.assignment is not None
        options: dict[str, Any] = {} if mask is None else {"mask": mask}
        if self.num_selected is not None:
            options["num_selected"] = self.num_selected
        law = self.assignment(logits, capacity=self.capacity, capacity_factor=self.capacity_factor, **options)
        if not isinstance(law, AssignmentDistribution):
            raise ValueError(f"assignment must make an AssignmentDistribution of logits, got {type(law).__name__}")
        if law.num_selected != self.num_selected:
            raise ValueError(
                f"assignment makes a distribution with num_selected={law.num_selected}, where num_selected="
                f"{self.num_selected}: give it to the layer"
            )
        return law

    def law_beside_plate(self, logits: Tensor, mask: Tensor | None = None) -> AssignmentDistribution:
        """:returns: the law of a site in a Pyro model: its batch shape leaves dimension -1 to the data plate."""
        if logits.dim() == 2:
            return self.law(logits, mask)
        return self.law(logits.unsqueeze(-3), None if mask is None else mask.unsqueeze(-2))

    def site(self, name: str, x: Tensor, logits: Tensor, mask: Tensor | None = None) -> Site:
        """
        Draw the assignment as a sample site of a Pyro model.

        :param x: what a baseline network sees, (*batch, n, d).
        """
        law = self.law_beside_plate(logits, mask)
        with self.draws_of(name, logits):
            return Site(law, pyro.sample(name, law, infer=baseline_infer(self.baseline, x)))

    def draws_of(self, site: str, logits: Tensor, **options: Any) -> AbstractContextManager[Visit | None]:
        """
        What :class:`~prob_moe.distributions.KeyedDraws` say of a site. They are required where other processes have
        other parts of the batch.

        :param options: of :func:`~prob_moe.distributions.draws_at`.
        """
        return draws_at(site, math.prod(logits.shape[:-2]), required=self.shares_batch, **options)

    @property
    def shares_batch(self) -> bool:
        """Whether other processes have other batch elements of the same batch."""
        return isinstance(self.experts, ParallelExperts) and self.experts.layout.num_processes > 1

    def process(
        self,
        x: Tensor,
        assignment: Tensor,
        law: AssignmentDistribution,
        mask: Tensor | None = None,
        *,
        everybody: bool = False,
    ) -> Tensor:
        """
        The experts under an assignment.

        :param x: (*batch, n, d).
        :param assignment: (*, n) or (*, m, n); what stands before the batch are particles.
        :param law: that drew it.
        :param mask: bool (*batch, n), or None.
        :param everybody: whether a dropped datapoint is processed too, by the expert that its router chose: in
            predictions, which must not invent an output.
        :returns: (*, n, out) or (*, m, n, out); zeros where dropped, and in padding.
        """
        *lead, n = assignment.shape
        if law.num_selected is not None:
            lead.pop()
        x = x.expand(*lead, *x.shape[-2:])
        mask = None if mask is None else mask.expand(*lead, n)
        if everybody and law.drops:
            assignment, slots = router_choices(assignment), slots_for(self.experts, x, None)
        else:
            slots = self.slots_within(None if law.capacity is None else law.slots, x)
        several = {} if law.num_selected is None else {"num_selected": law.num_selected}
        out: Tensor = self.experts(x, assignment, capacity=slots, mask=mask, **several)
        return out

    def selected_mixture(
        self, site: Site, outputs: Tensor, likelihood: Callable[[Tensor], TorchDistribution]
    ) -> SelectedMixture:
        """
        The law of the observations under the experts that a site with ``num_selected`` has drawn.

        :param outputs: of these experts, (*, m, n, out), or what a network makes of them.
        :param likelihood: from outputs to a Pyro distribution of batch shape (*, m, n).
        """
        law, value = site.law, site.value
        return SelectedMixture(
            site.in_plate(law.log_importance_weights(value)).to(outputs.dtype),
            site.in_plate(law.router_log_prob(value)),
            likelihood_of(outputs, likelihood),
            keep_probability=outside_plate(law.keep_probability(value)),
        )

    def slots_within(self, limit: int | None, x: Tensor) -> int | None:
        """
        :param limit: the most datapoints that an expert can get, a static int; None where there is no limit.
        :returns: the slots of every expert; None for experts that look at the loads, and do what is fastest.
        """
        if self.slots == "load":
            return slots_for(self.experts, x, limit)
        return int(self.slots) if limit is None else limit

    def balance(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """:returns: the weighted load-balancing loss, in units of the loss per datapoint, (*batch)."""
        if not self.load_balancing:
            return logits.new_zeros(logits.shape[:-2])
        return self.load_balancing * load_balancing_loss(logits, mask=mask)


def add_loss(name: str, loss: Tensor, num_datapoints: int, mask: Tensor | None) -> None:
    """
    A loss as a site of a Pyro model: minus the loss times the present datapoints. It trains by its own gradient alone,
    and no score function sees it.

    :param loss: (*batch), in units of the loss per datapoint.
    """
    present = num_datapoints if mask is None else mask.sum(-1)
    term = -detach_provenance(loss * present)
    pyro.factor(name, term.unsqueeze(-1) if term.dim() else term)
