"""The contract of an assignment distribution."""

from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from prob_moe._transforms import untraced
from prob_moe.distributions.draw import AnyDraw, Draw, attach, draw_of
from prob_moe.distributions.keyed_draws import keyed_draw, unkeyed_sample
from prob_moe.distributions.noise import Generators, gumbel_noise_like
from prob_moe.distributions.problem import RoutingProblem
from prob_moe.distributions.sets import code_dropped
from prob_moe.distributions.stock_elbos import refuse_stock_elbos
from prob_moe.distributions.undefined import no_entropy, no_log_prob, only_provenance_is_asked_for
from prob_moe.numerics import solve_partial_assignment


class AssignmentDistribution(RoutingProblem):
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
    ``enumerate_support``; where weights follow from a value alone, :meth:`log_weights`. Instead of a draw that
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Everybody's draws, also those of procedures that are written elsewhere.
        for name, wrapped in {"draw": keyed_draw, "sample": unkeyed_sample}.items():
            if name in vars(cls):
                setattr(cls, name, untraced(wrapped(getattr(cls, name))))

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """
        A draw, as Pyro makes it at a site.

        :raises ValueError: if one of Pyro's own ELBOs runs a model with this site and a guide without it.
        """
        refuse_stock_elbos(type(self).__name__)
        draw: Tensor = super().__call__(sample_shape)
        return draw

    # What the law says of a value ------------------------------------------------------------------------------------

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
        return self.log_importance_weights(value).exp().to(self._wide)

    @torch.no_grad()
    def log_importance_weights(self, value: Tensor) -> Tensor:
        """
        The log of :meth:`importance_weights`, which does not underflow.

        :returns: nats, in the shape of the value, without gradient; -inf where dropped, and for padding.
        """
        draw = draw_of(value, Draw)
        if draw is None:
            log_weights = self.log_weights(value)
        else:
            log_weights = self.router_log_prob(value).double() - draw.log_proposal
        # Forward mode does not heed no_grad.
        return log_weights.masked_fill(value < 0, -torch.inf).detach()

    @property
    def weight_pareto_k(self) -> float | None:
        """
        Pareto shape of the importance weights' tail, by the law and not by draws: all moments below 1/k are finite, so
        that the variance is infinite from k = 1/2 on. Minus infinity where the weights are bounded, None where unknown.
        The heaviest tail of the batch; looks at the capacity, which waits for the device.
        """
        return None

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
            log_proposal = self.router_log_prob(value).double() - log_weights.double()
        return self._proposed(value, log_proposal, kind, **known)

    def _proposed(self, value: Tensor, log_proposal: Tensor, kind: type[AnyDraw] = Draw, **known: Any) -> AnyDraw:  # type: ignore[assignment]
        """``_drawn`` for who knows log q of every entry; what stands in padding does not matter."""
        log_proposal = detach_provenance(log_proposal.detach()).double()
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
