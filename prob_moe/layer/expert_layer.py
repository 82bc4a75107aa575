"""A layer of experts for any network, in plain torch and in Pyro."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from prob_moe.distributions import AssignmentDistribution, DependentRounding
from prob_moe.distributions.keyed_draws import keyed
from prob_moe.distributions.sets import entries_of, most_wanted
from prob_moe.estimators.baselines import Baseline
from prob_moe.experts import BatchedExperts
from prob_moe.layer.base import RoutedExperts, add_loss
from prob_moe.layer.moves import Moves, Step
from prob_moe.layer.names import module_path, name_in, names_in_trace
from prob_moe.layer.parts import (
    baseline_infer,
    check_datapoints,
    combine_by_gates,
    divided,
    experts_of,
    linear_router,
    router_logits,
    rule_of,
)
from prob_moe.layer.recording import recorder, warn_where_nobody_records
from prob_moe.layer.records import RecordedLayer, Visit, entry_mask, record_of_draw, without_padding
from prob_moe.layer.replaying import as_drawn, number_of_pass, replayed_layer, replaying
from prob_moe.layer.rule_parts import sparse_routing, with_experts, with_slots
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.parallel.gradients import sum_counts
from prob_moe.recomputation import recomputing
from prob_moe.rules import Routing, RoutingRule

#: where a state_dict has what a baseline remembers, if it remembers anything
BASELINE = "baseline_state"


class ExpertLayer(RoutedExperts):
    r"""
    Router, routing and experts as one module, (*batch, n, d) -> (*batch, n, out), which stands in a network as any
    other. Leading dimensions are batches (sequences, say) with a capacity each.

    With ``num_selected`` = m every datapoint gets m distinct experts within capacity. ``combine="gates"`` puts out
    :math:`\sum_j g_{ij} f_j(x_i)`, the gates being the router's probabilities renormalised over the experts that
    process the datapoint, for layers inside a network and the balanced objective. ``combine=None`` puts out all m
    outputs, (*batch, m, n, out), for the mixture bound: the layer is the last one then (in Pyro a
    :class:`~prob_moe.mixture.MixtureOfExperts` with ``num_selected`` is such a layer with its likelihood).

    **In a plain training loop** the layer draws, and :func:`~prob_moe.layer.record_routing` collects the draws of
    all layers, from which it makes a loss with unbiased gradients; without it the router of a distribution gets no
    gradient, and a warning says so once. ``layer.eval()`` serves: every datapoint goes to its favourite expert, or its
    m favourites, nobody is dropped, and a batch says of a datapoint what it says alone (but for rules that look at the
    whole batch: expert choice, Soft MoE, shared SMEAR, sparse transport).

    **In a Pyro model** (under any of Pyro's effect handlers) a distribution is a sample site, drawn in evaluation mode
    too, for :class:`~prob_moe.estimators.TraceRouting_ELBO` or the balanced objective. It stands outside of the data
    plate, as in :class:`~prob_moe.mixture.MixtureOfExperts`: call the layer there, in the plates of its batches at
    dims -2 and further left. The losses of rules and ``load_balancing`` are sites ``<name>_loss``, minus the loss times
    the present datapoints; they train by their own gradient alone, and no score function sees them. As everywhere in
    Pyro, ``SVI`` moves the parameters of a network that is a ``PyroModule`` or is given to ``pyro.module``.

    The output of a dropped datapoint is 0 (x, for experts with ``residual``), and its importance weight is 0: its loss
    counts nothing under the router objective. The output of padding is 0.

    :param router: module (*batch, n, d) -> logits (*batch, n, k); None for a linear one, which beside other experts
        than ``BatchedExperts`` learns d at the first call (``LazyLinear``): run it once before making an optimiser.
    :param experts: a :class:`~prob_moe.experts.BatchedExperts`; or modules of one form, (c, d) -> (c, out), which are
        stacked; or one module (k, c, d) -> (k, c, out), with an attribute ``num_experts`` where the router is None.
    :param assignment: an assignment distribution, or a callable that makes one from logits, ``capacity``,
        ``capacity_factor`` and, where they are given, ``num_selected`` and ``mask``; or a rule: a class of
        ``prob_moe.rules``, a ``functools.partial`` of it, or a rule that brings its own capacity. A rule makes no
        sample site.
    :param capacity: the most datapoints that an expert processes in a batch element; or
    :param capacity_factor: capacity = ceil(capacity_factor * n m / k), padding not counted. A distribution without
        limit and a rule need neither.
    :param num_selected: m, the experts of every datapoint; None for one. A rule has an option of its own.
    :param combine: what the layer puts out with ``num_selected``: None for the m outputs, (*batch, m, n, out), or
        ``"gates"`` for one, (*batch, n, out).
    :param slots: ``"load"``: the cost follows the datapoints (slots for the largest load, or products on rows sorted by
        expert, whatever is faster), which waits for the device where there is no limit; or an int, the slots that an
        expert has where there is no limit, which fixes all shapes, and is an error where it does not suffice.
    :param name: of the sample site and in records; unique in a network, so that the layer is called once. None for the
        layer's path in the network, with a number behind it where the layer is called again.
    :param baseline: a :class:`~prob_moe.estimators.Baseline` such as ``DecayingAverage()``; or a module (*batch, n, d)
        -> (*batch, n) that predicts the loss, in Pyro the log-likelihood, of every datapoint, and is trained along; in
        Pyro also ``infer["baseline"]`` options.
    :param load_balancing: weight of :func:`~prob_moe.rules.load_balancing_loss` on expected shares; for
        distributions, where rules have losses of their own.
    :param mesh: to divide the experts among processes, see :class:`~prob_moe.parallel.ParallelExperts`; each calls the
        layer with its own batch elements. Draws then need :class:`~prob_moe.distributions.KeyedDraws`.
    :raises ValueError: on arguments that do not fit; when called, on a router whose width is not that of the experts.

    >>> _ = torch.manual_seed(0)
    >>> from prob_moe.distributions import DependentRounding
    >>> layer = ExpertLayer(None, BatchedExperts(4, 8, 16, 8), DependentRounding, capacity_factor=1.0)
    >>> layer.eval()(torch.randn(2, 10, 8)).shape
    torch.Size([2, 10, 8])
    """

    def __init__(
        self,
        router: nn.Module | None,
        experts: nn.Module | Sequence[nn.Module],
        assignment: Callable[..., AssignmentDistribution] | Callable[..., RoutingRule] = DependentRounding,
        *,
        capacity: int | None = None,
        capacity_factor: float | None = None,
        num_selected: int | None = None,
        combine: Literal["gates"] | None = None,
        slots: int | Literal["load"] = "load",
        name: str | None = None,
        baseline: Baseline | nn.Module | dict[str, Any] | None = None,
        load_balancing: float = 0.0,
        mesh: DeviceMesh | None = None,
    ) -> None:
        rule = rule_of(assignment, capacity, capacity_factor)
        kind = type(rule).__name__
        if rule is not None and (baseline is not None or load_balancing):
            raise ValueError(f"{kind} draws from no law and has losses of its own: give no baseline or load_balancing")
        if rule is not None and num_selected is not None:
            raise ValueError(f"num_selected={num_selected} is for distributions: give {kind} its own option")
        if combine not in (None, "gates") or (combine is not None and num_selected is None):
            raise ValueError(f'combine must be None, or "gates" with num_selected, got {combine!r}')
        batched = experts_of(experts, router)
        if getattr(rule, "merges_parameters", False) and not isinstance(batched, BatchedExperts):
            raise ValueError(
                f"{kind} merges parameters: experts must be a BatchedExperts, got {type(experts).__name__}"
            )
        router = linear_router(batched, rule) if router is None else router
        super().__init__(
            router,
            batched if mesh is None else divided(batched, router, rule, mesh),
            None if rule is not None else assignment,  # type: ignore[arg-type]
            capacity=capacity,
            capacity_factor=capacity_factor,
            num_selected=num_selected,
            slots=slots,
            baseline=baseline,
            load_balancing=load_balancing,
        )
        self.rule, self.name, self.combine = rule, name, combine
        self._warned = False
        self._moves = Moves()

    def update(self) -> None:
        """
        Move what training moves without a gradient, once per optimiser step, after the backward pass: the bias of
        ``LossFreeBias``, and what baselines remember. ``forward`` and ``surrogate`` only collect; a second optimiser
        step without this warns once. On a mesh every process has to call it.
        """
        if self.rule is not None:
            if self.shares_batch:
                sum_counts(self.rule.counted)
            self.rule.update()
        self._moves.update()

    @leaves_torch  # draws, names and records are not for a compiler; a router and experts that are compiled stay so
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, router_input: Tensor | None = None, **options: Any
    ) -> Tensor:
        """
        :param x: datapoints, (*batch, n, d).
        :param mask: bool, broadcastable to (*batch, n), False for padding.
        :param router_input: what the router sees in the place of x (tokens, say), n of each batch; None for x.
        :param options: for a rule that wants more, as ``identity`` of ``HashRouting``.
        :returns: (*batch, n, out); (*batch, m, n, out) with ``num_selected`` = m and ``combine=None``.
        """
        x, mask = check_datapoints(x, mask)
        if self.rule is None and options:
            raise ValueError(f"{sorted(options)} are options of rules, not of assignment distributions")
        logits = router_logits(self.router, x, self.experts, self.rule, router_input)
        if am_i_wrapped():
            if recorder() is not None or replaying():
                raise ValueError("record_routing and replay_routing are for plain torch; in Pyro use trace and replay")
            return self._in_pyro(x, logits, mask, options)
        repeated, number = recomputing(), number_of_pass()
        recorded = replayed_layer(self, self.name, number, repeated=repeated)
        site = (self.name or module_path(self) or "experts") if keyed() else "experts"
        with self.draws_of(site, logits, number=number, repeated=repeated) as keys:
            if self.rule is not None:
                out, visit = self._ruled(self.rule, x, logits, mask, options, recorded)
            elif self.training or recorded is not None:
                out, visit = self._drawn(x, logits, mask, recorded)
            else:
                out, visit = self._served(x, logits, mask)
        if self.training and not repeated:
            self._watch()
        if out.grad_fn is not None:
            # A repetition of this pass needs them as long as the graph lives.
            metadata: dict[Any, Any] = out.grad_fn.metadata  # type: ignore[assignment]
            metadata["prob_moe.repeated"] = (recorded, keys)
        routed = recorder()
        if routed is not None and not repeated:
            name = name_in(self, self.name, routed.names)
            routed.visits.append(replace(visit, name=name, with_gradient=torch.is_grad_enabled()))
        return out

    def _watch(self) -> None:
        if self.rule is None:
            if torch.is_grad_enabled():
                self._warned = self._warned or warn_where_nobody_records()
        elif self.rule.waits_for_update:
            self._moves.collect(self)

    def _learn(self, baseline: Baseline, step: Step) -> None:
        self._moves.collect(self, (baseline, step))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.baseline, Baseline) and (state := self.baseline.state_dict()):
            destination[prefix + BASELINE] = state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.pop(prefix + BASELINE, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if isinstance(self.baseline, Baseline):
            self.baseline.load_state_dict(state or {})

    def extra_repr(self) -> str:
        return f"assignment={self.assignment}, capacity={self.capacity}, capacity_factor={self.capacity_factor}"

    # Outside of Pyro -------------------------------------------------------------------------------------------------

    def _drawn(
        self, x: Tensor, logits: Tensor, mask: Tensor | None, recorded: RecordedLayer | None
    ) -> tuple[Tensor, Visit]:
        law = self.law(logits, mask)
        if recorded is None:
            draw = law.draw()
            value = draw.value
            recorded = record_of_draw(law, draw)
        else:
            value = as_drawn(recorded, law)
        out = self.process(x, value, law, mask)
        if self.combine == "gates":
            out = combine_by_gates(out, law.router_log_prob(value), value)
        baseline = baseline_infer(self.baseline, x).get("baseline")
        combined = self.num_selected is None or self.combine is not None
        return out, Visit("", recorded, self.balance(logits, mask), (law, value), combined, baseline, self._learn)

    def _served(self, x: Tensor, logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Visit]:
        m = self.num_selected
        favourites = logits.argmax(-1) if m is None else most_wanted(logits.detach(), m)
        log_p = None if self.combine is None else entries_of(logits.log_softmax(-1), favourites, m)
        if mask is not None:
            favourites = favourites.masked_fill(~entry_mask(mask, favourites), -1)
        slots = None if self.slots == "load" else x.shape[-2]
        out = self.experts(x, favourites, capacity=slots, num_selected=m, mask=mask)
        if log_p is not None:
            out = combine_by_gates(out, log_p, favourites)
        recorded = RecordedLayer(without_padding(favourites, mask), None, logits.shape[-1])
        return out, Visit("", recorded, logits.new_zeros(logits.shape[:-2]))

    def _ruled(
        self,
        rule: RoutingRule,
        x: Tensor,
        logits: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
        recorded: RecordedLayer | None,
    ) -> tuple[Tensor, Visit]:
        routing = (rule if self.training else rule.unlimited())(logits, mask=mask, **options)
        k = self.experts.num_experts
        if recorded is not None:
            routing = with_experts(rule, routing, logits, mask, recorded, k)
        out = self._output(routing, x, limited=self.training and recorded is None)
        chosen = routing.chosen
        value = None if chosen is None else without_padding(chosen, None if mask is None else mask.unsqueeze(-2))
        return out, Visit("", RecordedLayer(value, None, k), routing.loss)

    # In a Pyro model -------------------------------------------------------------------------------------------------

    def _in_pyro(self, x: Tensor, logits: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        name = name_in(self, self.name, names_in_trace())
        if self.rule is not None:
            with self.draws_of(name, logits):
                routing = (self.rule if self.training else self.rule.unlimited())(logits, mask=mask, **options)
            if self.training and not recomputing() and self.rule.waits_for_update:
                self._moves.collect(self)
            add_loss(f"{name}_loss", routing.loss, x.shape[-2], mask)
            return self._output(routing, x, limited=self.training)
        site = self.site(name, x, logits, mask)
        if self.load_balancing:
            add_loss(f"{name}_loss", self.balance(logits, mask), x.shape[-2], mask)
        out = self.process(x, site.assignment, site.law, mask)
        if self.combine == "gates":
            out = combine_by_gates(out, site.in_plate(site.law.router_log_prob(site.value)), site.assignment)
        return out

    # Common to both --------------------------------------------------------------------------------------------------

    def _output(self, routing: Routing, x: Tensor, *, limited: bool) -> Tensor:
        assert self.rule is not None
        sparse = sparse_routing(routing)
        if sparse is not None:
            bounded = limited and (self.rule.capacity is not None or self.rule.capacity_factor is not None)
            fixed = not limited and self.slots != "load"
            slots = x.shape[-2] if fixed else self.slots_within(sparse.slots if bounded else None, x)
            routing = with_slots(routing, slots)
        return routing.output(self.experts, x)
