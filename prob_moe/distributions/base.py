"""The contract of an assignment distribution."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.ops.provenance import detach_provenance
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from prob_moe._copies import copy_off_the_graph
from prob_moe._transforms import untraced
from prob_moe.distributions.capacity import (
    check_all_selected,
    check_capacity_values,
    check_room,
    describe_capacity,
    resolve_capacity,
)
from prob_moe.distributions.checks import check_logit_values, check_logits, check_mask, check_num_selected, check_value
from prob_moe.distributions.draw import AnyDraw, Draw, attach, draw_of
from prob_moe.distributions.noise import Generators, gumbel_noise_like
from prob_moe.distributions.sets import code_dropped, entries_of
from prob_moe.distributions.stock_elbos import refuse_stock_elbos
from prob_moe.distributions.support import AssignmentConstraint, expert_counts, router_choices, router_logits
from prob_moe.distributions.undefined import no_entropy, no_log_prob, only_provenance_is_asked_for
from prob_moe.matching import solve_partial_assignment


class AssignmentDistribution(TorchDistribution):
    r"""
    Base of all procedures that assign n datapoints of a batch to k experts of limited capacity.

    A router proposes :math:`p_i = \mathrm{softmax}(\phi_i)` for every datapoint i. A procedure draws the experts of all
    datapoints jointly, so that no expert gets more than ``capacity``. Its value is one long tensor of shape
    ``sample_shape + batch_shape + (n,)``:

    * entry e in 0..k-1: the datapoint is processed by expert e;
    * entry ``~e`` = -e-1: the router chose e, and the datapoint was dropped;
    * entry -1 where ``mask`` is False: padding, which takes no part.

    With ``num_selected`` = m the value is ``sample_shape + batch_shape + (m, n)``: m distinct experts e of every
    datapoint in ascending order, dropped or not, each coded so.

    Every procedure is also a proposal for independent routing: for each datapoint i and every function g,

    .. math:: E\Big[\sum_j w_{ij}\, g(z_{ij})\Big] = E_{z \sim p_i}[g(z)],
        \qquad w = \texttt{importance\_weights}(\texttt{value}),

    the sum over the experts of the datapoint, one or m.

    A subclass defines :meth:`draw` and :attr:`mode`, and, where they exist, :meth:`log_prob` and
    :meth:`enumerate_support`; where weights follow from a value alone, :meth:`log_weights`. Instead of a draw that
    carries what it knows it may define just :meth:`sample` and :meth:`importance_weights`.

    :param logits: router logits :math:`\phi`, float (*batch, n, k). Minus infinity forbids an expert.
    :param capacity: the most datapoints that one expert can process: a positive int, or a long tensor (*batch) with a
        number for every batch element.
    :param capacity_factor: instead of ``capacity``: :math:`c_b = \max(1, \lceil \mathrm{factor} \cdot n_b / k \rceil)`
        where batch element b has :math:`n_b` datapoints, padding not counted, and :math:`m n_b` with m experts for
        each. So the law of a batch element is the same alone and beside longer ones.
    :param num_selected: m, how many distinct experts every datapoint gets, from 1 to k; None for one expert and values
        without the dimension of the m.
    :param mask: bool, broadcastable to (*batch, n); False marks padding, which takes no capacity.
    :param validate_args: whether to check values, at the cost of a synchronisation of the device; by default as
        ``pyro.enable_validation`` says.
    :raises ValueError: on logits of a wrong dtype or shape, NaN, a datapoint with fewer allowed experts than it needs,
        m = k with a capacity below n, or, where nobody can be dropped, more datapoints than the experts can process.
    """

    arg_constraints = {"logits": router_logits}  # noqa: RUF012  (torch's form)
    has_rsample = False
    #: whether the procedure can drop a datapoint
    drops = False
    #: whether `capacity` bounds the loads
    limited = True

    def __init__(
        self,
        logits: Tensor,
        *,
        capacity: int | Tensor | None = None,
        capacity_factor: float | None = None,
        num_selected: int | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_logits(logits)
        check_num_selected(num_selected, logits.shape[-1])
        #: m, the experts of every datapoint; None where values have no dimension for them
        self.num_selected = num_selected
        self.mask = check_mask(mask, logits)
        # Whatever stands in padding, NaN for one, must not reach a value or a gradient.
        self.logits = logits if self.mask is None else logits.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        # torch would check `arg_constraints` too, with a message that cannot say what is wrong.
        super().__init__(*self.infer_shapes(logits.shape, num_selected=num_selected), validate_args=False)
        # Pyro's switch, not torch's, which torch.compile turns off for the whole process.
        self._validate_args = is_validation_enabled() if validate_args is None else validate_args
        self._set_capacity(capacity, capacity_factor)
        if self._validate_args:
            check_logit_values(self.logits, num_selected or 1)

    def _set_capacity(self, capacity: int | Tensor | None, factor: float | None) -> None:
        try:
            #: the most datapoints that one expert processes, long (*batch); None where there is no limit
            self.capacity, self._largest = resolve_capacity(
                capacity, factor, self.logits, self.mask, self.num_selected or 1
            )
            if self.capacity is None:
                if self.limited and not self._may_lack_capacity:
                    raise ValueError("one of capacity and capacity_factor is needed")
                return
            if self._validate_args:
                check_capacity_values(self.capacity)
            if not self.limited:
                self.capacity, self._largest = None, None
            elif not self.drops:
                check_room(self.capacity, self._largest, self.logits, self.mask, look=self._validate_args)
            elif self.num_selected == self.num_experts:
                check_all_selected(self.capacity, self._largest, self.logits, self.mask, look=self._validate_args)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Everybody's draws, also those of procedures that are written elsewhere.
        for name in {"draw", "sample"} & vars(cls).keys():
            setattr(cls, name, untraced(getattr(cls, name)))

    # Shapes and names ------------------------------------------------------------------------------------------------

    @property
    def num_datapoints(self) -> int:
        """n"""
        return self.event_shape[-1]

    @property
    def num_experts(self) -> int:
        """k"""
        return self.logits.shape[-1]

    @property
    def _may_lack_capacity(self) -> bool:
        """Whether a procedure that keeps to a capacity has a meaning without one."""
        return False

    @property
    def slots(self) -> int:
        """
        How many slots every expert of the expert layer needs, a static int: the capacity, padding counted, at most n.

        From a capacity factor or an int it follows from shapes alone; a tensor of capacities is looked at.
        """
        n = self.num_datapoints
        if self.capacity is not None and self._largest is None:
            self._largest = int(self.capacity.max()) if self.capacity.numel() else 1
        return max(1, n if self._largest is None else min(self._largest, n))

    @property
    def support(self) -> AssignmentConstraint:
        return AssignmentConstraint(self.num_experts, self.capacity, self.drops, self.mask, self.num_selected)

    @classmethod
    def infer_shapes(
        cls, logits: torch.Size, *, num_selected: int | None = None, **kwargs: Any
    ) -> tuple[torch.Size, torch.Size]:
        """:returns: batch shape and event shape for logits of a given shape."""
        several = () if num_selected is None else (num_selected,)
        return torch.Size(logits[:-2]), torch.Size((*several, *logits[-2:-1]))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AssignmentDistribution":
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape + self.logits.shape[-2:])
        new.mask = None if self.mask is None else self.mask.expand(batch_shape + self.event_shape[-1:])
        new.num_selected = self.num_selected
        new.capacity = None if self.capacity is None else self.capacity.expand(batch_shape)
        new._largest = self._largest
        super(AssignmentDistribution, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """
        A draw, as Pyro makes it at a site.

        :raises ValueError: if one of Pyro's own ELBOs runs a model with this site and a guide without it.
        """
        refuse_stock_elbos(type(self).__name__)
        draw: Tensor = super().__call__(sample_shape)
        return draw

    def __deepcopy__(self, memo: dict[int, Any]) -> "AssignmentDistribution":
        return copy_off_the_graph(self, memo)

    def __repr__(self) -> str:
        shape = tuple(self.logits.shape)
        several = "" if self.num_selected is None else f", num_selected={self.num_selected}"
        return f"{type(self).__name__}(logits of shape {shape}, capacity={describe_capacity(self.capacity)}{several})"

    # What a value says -----------------------------------------------------------------------------------------------

    def processed(self, value: Tensor) -> Tensor:
        """:returns: which entries are processed by an expert, bool (*, n) or (*, m, n)."""
        return value >= 0

    def loads(self, value: Tensor) -> Tensor:
        """:returns: processed datapoints per expert, long (*, k)."""
        flat = value if self.num_selected is None else value.flatten(-2)
        return expert_counts(router_choices(flat), flat >= 0, self.num_experts)

    def router_log_prob(self, value: Tensor) -> Tensor:
        r"""
        The router's own log-probability :math:`\log p_i(z_i)` of every choice, dropped or not; 0 for padding.

        :returns: nats, (*, n) or (*, m, n), differentiable in the logits; in float32 at least.
        """
        log_p = self.logits.log_softmax(-1, dtype=self._wide)
        picked = entries_of(log_p, router_choices(value), self.num_selected)
        mask = self._entry_mask
        return picked if mask is None else torch.where(mask, picked, torch.zeros_like(picked))

    def keep_probability(self, value: Tensor) -> Tensor:
        r"""
        :math:`\kappa_i`, the probability that datapoint i keeps at least one expert, given what was chosen: 1 where
        nobody can be dropped, and for padding.

        A mean over datapoints that were not dropped, each divided by its :math:`\kappa_i`, is unbiased.

        :returns: (*, n) in the dtype of the logits, at least float32, without gradient.
        """
        if self.drops:
            raise NotImplementedError(f"{type(self).__name__} does not tell how likely a datapoint is dropped")
        first = value if self.num_selected is None else value[..., 0, :]
        return torch.ones_like(first, dtype=self._wide)

    def pair_weights(self, value: Tensor) -> Tensor:
        """Weights of pairs of selected experts, where their inclusion probabilities are known."""
        raise NotImplementedError(
            f"{type(self).__name__} knows no inclusion probabilities of pairs; IndependentRouting and CapacitySkip do"
        )

    # What a procedure defines ----------------------------------------------------------------------------------------

    def draw(self, sample_shape: torch.Size = torch.Size(), *, generator: Generators = None) -> Draw:  # noqa: B008
        """
        A sample with what only the drawing call knows, which travels on its value.

        :param generator: source of the randomness, by default torch's own; or a list with one for every element of
            sample and batch shape, so that an element's draw does not depend on its companions.
        """
        name = type(self).__name__
        if type(self).sample is AssignmentDistribution.sample:
            raise NotImplementedError(f"{name} defines neither draw nor sample")
        if generator is not None:
            raise NotImplementedError(f"{name} defines sample alone, which knows no generator: define draw instead")
        value = self.sample(torch.Size(sample_shape))
        return self._drawn(value, self.importance_weights(value).log())

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """:returns: the value of :meth:`draw`, long (*sample, *batch) + event shape, which carries the draw."""
        return self.draw(torch.Size(sample_shape)).value

    def log_weights(self, value: Tensor) -> Tensor:
        """
        The log of the importance weights of a value that this procedure drew, where it follows from the value.

        :returns: nats, (*, n) or (*, m, n), without gradient; -inf where dropped.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no importance weights for values that carry no draw")

    def importance_weights(self, value: Tensor) -> Tensor:
        r"""
        Weights with :math:`E[\sum_j w_{ij} g(z_{ij})] = E_{p_i}[g]` for every g; 0 where dropped, and for padding.

        They are exp(router_log_prob - log_proposal) with the ``log_proposal`` of the draw that the value carries, so a
        value that was drawn under other logits, and is replayed here, has its right weights too.

        :returns: (*, n) or (*, m, n) in the dtype of the logits, at least float32, without gradient.
        """
        with torch.no_grad():
            draw = draw_of(value, Draw)
            if draw is None:
                log_weights = self.log_weights(value)
            else:
                log_weights = self.router_log_prob(value).double() - draw.log_proposal
            weights = torch.where(value >= 0, log_weights, torch.full_like(log_weights, -torch.inf)).exp()
            # Forward mode does not heed no_grad.
            return weights.to(self._wide).detach()

    @property
    def weight_pareto_k(self) -> float | None:
        """
        Pareto shape of the importance weights' tail, by the law and not by draws: all moments below 1/k are finite, so
        that the variance is infinite from k = 1/2 on. Minus infinity where the weights are bounded, None where unknown.
        The heaviest tail of the batch; looks at the capacity, which waits for the device.
        """
        return None

    @property
    def _wide(self) -> torch.dtype:
        """The dtype of weights and log-probabilities: half precision is too coarse for ratios and sums."""
        return torch.promote_types(self.logits.dtype, torch.float32)

    @property
    def mode(self) -> Tensor:
        """The best assignment at zero noise, long (*batch, n) or (*batch, m, n)."""
        raise NotImplementedError(f"{type(self).__name__} defines no mode")

    def log_prob(self, value: Tensor) -> Tensor:
        """
        The joint log-probability of an assignment.

        :returns: nats, (*sample, *batch), differentiable in the logits.
        :raises NotImplementedError: where a procedure defines none; it says what works without.
        """
        if only_provenance_is_asked_for():
            # It depends on what the law depends on.
            return self.router_log_prob(value).sum(tuple(range(-len(self.event_shape), 0)))
        raise no_log_prob(type(self).__name__)

    def entropy(self) -> Tensor:
        """
        The entropy -E[log P(Z)] of the joint law.

        :returns: nats, (*batch), differentiable in the logits.
        :raises NotImplementedError: where it is not known exactly.
        """
        instead = "entropy_estimate" if hasattr(self, "entropy_estimate") else None
        raise no_entropy(type(self).__name__, instead)

    def score_function(self, value: Tensor) -> Tensor:
        r"""
        A function whose gradient has the score :math:`\nabla\log P(\mathrm{value})` as its expectation given the value.

        It is ``log_prob`` unless the procedure knows something cheaper.

        :returns: nats, (*sample, *batch).
        """
        return self.log_prob(value)

    # Helpers for subclasses ------------------------------------------------------------------------------------------

    def _best_within_capacity(self) -> Tensor:
        """The largest sum of log p over the processed datapoints, as many as the experts have slots for: a mode."""
        log_p = detach_provenance(self.logits.detach()).double().log_softmax(-1)
        assert self.capacity is not None
        if self.num_selected is None:
            assignment = solve_partial_assignment(log_p, self.capacity, mask=self.mask)
            return self._code_padding(torch.where(assignment >= 0, assignment, ~log_p.argmax(-1)))
        held = solve_partial_assignment(log_p, self.capacity, num_selected=self.num_selected, mask=self.mask)
        return self._code_padding(code_dropped(held, log_p))

    def _drawn(self, value: Tensor, log_weights: Tensor, kind: type[AnyDraw] = Draw, **known: Any) -> AnyDraw:  # type: ignore[assignment]
        """The draw of a value, attached to it. ``known`` is what else this kind of draw holds."""
        with torch.no_grad():
            # In float64, so that the weights come back to the last bit of their dtype.
            log_proposal = detach_provenance(self.router_log_prob(value).double() - log_weights.double())
            mask = self._entry_mask
            if mask is not None:
                log_proposal = torch.where(mask, log_proposal, torch.zeros_like(log_proposal))
        return attach(kind(value=value, log_proposal=log_proposal, **known))

    def _sample_router(self, sample_shape: torch.Size, generator: Generators = None) -> Tensor:
        """Independent draws z_i ~ p_i by the Gumbel-max trick, long (*sample, *batch, n); 0 for padding."""
        choices = self._perturbed(sample_shape, generator).argmax(-1)
        return choices if self.mask is None else choices.masked_fill(~self.mask, 0)

    def _perturbed(self, sample_shape: torch.Size, generator: Generators) -> Tensor:
        """Logits with Gumbel noise, (*sample, *batch, n, k)."""
        logits = self.logits.detach()
        return logits + gumbel_noise_like(logits.expand(sample_shape + logits.shape), generator)

    def _code_padding(self, value: Tensor) -> Tensor:
        mask = self._entry_mask
        return value if mask is None else value.masked_fill(~mask, -1)

    def _present(self, like: Tensor) -> Tensor:
        """Which entries are not padding, bool of the shape of ``like``, (*, n) or (*, m, n)."""
        mask = self._entry_mask
        return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.expand(like.shape)

    @property
    def _entry_mask(self) -> Tensor | None:
        """The mask as it meets the entries of a value: (*batch, n) or (*batch, 1, n)."""
        return self.mask if self.mask is None or self.num_selected is None else self.mask.unsqueeze(-2)

    def _validate_sample(self, value: Tensor) -> None:
        check_value(self, value)
