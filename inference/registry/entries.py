"""An entry of the registry: how to type it, how to show it, how to make it, and what it needs."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from functools import partial
from inspect import signature
from typing import Any, ClassVar

from pyro.infer.elbo import ELBO
from torch import nn

from inference.registry.names import spelling
from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators import Baseline
from prob_moe.rules import RoutingRule


class Objective(StrEnum):
    """
    What the expected gradient of an estimator or a rule is compared with; all are log-likelihoods, in nats.

    * router: sum_i E_{z_i ~ p_i}[f_i(z_i)].
    * balanced: E_{Z ~ procedure}[sum_i f_i(z_i)].
    * mixture: the mixture bound, from several experts per datapoint, with the procedure held fixed as a proposal.
    * gated: sum_i E_{z_i ~ p_i}[L_i(p_{i z_i} f_{z_i}(x_i))], of outputs scaled by the gate, without capacity.
    * own: sum_i L_i(y_i), of the output y of the deterministic model that runs.
    """

    ROUTER = "router"
    BALANCED = "balanced"
    MIXTURE = "mixture"
    GATED = "gated"
    OWN = "own"


@dataclass(frozen=True)
class Entry:
    """
    :param label: how tables and pictures call it; one types its :func:`~inference.registry.names.spelling`.
    :param make: makes it: a class, or another callable.
    """

    kind: ClassVar[str]  #: what an entry is, in messages
    makes: ClassVar[type] = object  #: what it is

    label: str
    make: Callable[..., Any]
    _: KW_ONLY
    origin: str = field(default="", compare=False)  #: the plugin that brought it, set by the registry

    @property
    def name(self) -> str:
        return spelling(self.label)

    def check(self) -> None:
        """
        :raises ValueError: if the label is no name, or what would be made is of another kind.
        """
        if not isinstance(self.label, str) or not self.name:
            raise ValueError(f"the label of a {self.kind} must be a text, got {self.label!r}")
        made = self.make.func if isinstance(self.make, partial) else self.make
        if not callable(made) or (isinstance(made, type) and not self._fits(made)):
            got = made.__name__ if isinstance(made, type) else repr(made)
            raise ValueError(f"{self.kind} {self.name!r} must be of type {self.makes.__name__}, got {got}")

    def _fits(self, made: type) -> bool:
        return issubclass(made, self.makes)


@dataclass(frozen=True)
class ProcedureEntry(Entry):
    """
    An assignment distribution.

    :param make: called with logits, ``capacity`` or ``capacity_factor``, and, where it has them, ``mask`` and
        ``num_selected``.
    :param words: how it assigns, for reports.
    :param weighted: whether its importance weights are other than 1.
    :param has_law: whether it has ``log_prob`` and ``enumerate_support``, which the balanced objective needs.
    :param takes_several: whether it takes ``num_selected``.
    """

    kind = "procedure"
    makes = AssignmentDistribution

    words: str = ""
    _: KW_ONLY
    weighted: bool = True
    has_law: bool = True
    takes_several: bool = False


@dataclass(frozen=True)
class RuleSetting:
    """What a rule may have to know of where it is to work."""

    num_experts: int
    capacity_factor: float
    load_balancing: float = 0.0
    batch_shape: tuple[int, ...] = ()  #: models that are trained side by side
    same_features: bool = True  #: whether experts put out as many features as they take
    learns: bool = True  #: False where nothing may move between two draws


def _no_options(setting: RuleSetting) -> dict[str, Any]:
    return {}


#: how many experts evaluate a datapoint in a step of training: a number, or all of them, or as many rows as there are
#: slots, whatever the number of datapoints
Evaluations = int | str
ALL_EXPERTS, SLOTS = "all", "slots"


@dataclass(frozen=True)
class RuleEntry(Entry):
    """
    A rule of :mod:`prob_moe.rules`.

    :param objectives: what the report on gradients holds it to: its own deterministic model, or the stochastic
        objective that it samples.
    :param exact: whether autograd gives the gradient of its own model.
    :param dense: whether every datapoint uses all experts.
    :param evaluations: what a step of training costs, see ``Evaluations``.
    :param looks_ahead: whether later datapoints change what it puts out for a datapoint, when it serves too.
    :param fixed: whether the logits play no part, so that no router learns.
    :param limited: whether it takes a capacity factor.
    :param balancing: its own option for the weight of its load-balancing loss; else the study adds Switch's.
    :param options: further options, from the setting.
    :param commands: that know it; a variant is for one of them. ``fit`` trains language models with it, so that it has
        to give every byte experts of its own, and to serve a byte without looking at those that follow.
    """

    kind = "rule"
    makes = RoutingRule

    _: KW_ONLY
    objectives: tuple[Objective, ...] = (Objective.OWN,)
    exact: bool = True
    dense: bool = False
    evaluations: Evaluations = 1
    looks_ahead: bool = False
    fixed: bool = False
    limited: bool = True
    balancing: str | None = None
    options: Callable[[RuleSetting], dict[str, Any]] = _no_options
    commands: tuple[str, ...] = ("study", "gradients", "fit")

    @property
    def words(self) -> str:
        """What the rule says that it aims at."""
        return str(getattr(getattr(self.make, "func", self.make), "objective", "what its docstring says"))

    def build(self, setting: RuleSetting) -> RoutingRule:
        """A new rule."""
        options = self.options(setting)
        if self.limited:
            options["capacity_factor"] = setting.capacity_factor
        if self.balancing is not None:
            options[self.balancing] = setting.load_balancing
        rule: RoutingRule = self.make(**options)
        return rule


def asks_for_identity(rule: RoutingRule) -> bool:
    """:returns: whether the rule's ``forward`` wants to know who the datapoints are, as a hash does."""
    return "identity" in signature(rule.forward).parameters


@dataclass(frozen=True)
class EstimatorEntry(Entry):
    """
    An ELBO, by what it estimates.

    :param make: called with ``num_particles``, ``vectorize_particles`` and ``max_plate_nesting``.
    :param words: the objective, and what is right or wrong with the estimate, for reports.
    :param takes_several: whether it can do with several experts per datapoint.
    :param needs_several: whether it cannot do with one.
    """

    kind = "estimator"
    makes = ELBO

    words: str = ""
    _: KW_ONLY
    objective: Objective = Objective.ROUTER
    takes_several: bool = False
    needs_several: bool = False


@dataclass(frozen=True)
class BaselineEntry(Entry):
    """
    What is subtracted from the cost that multiplies the score.

    :param make: called without arguments, once for every layer; or
    :param network: with the width of the layer's inputs: then it makes a network that predicts the cost from them.
    :param needs_particles: whether it compares particles, so that one is not enough.
    """

    kind = "baseline"
    makes = Baseline

    _: KW_ONLY
    network: bool = False
    needs_particles: bool = False

    def _fits(self, made: type) -> bool:
        # It need not be a subclass: whatever has these is a baseline.
        return self.network or all(hasattr(made, name) for name in ("value", "update", "needs_particles"))

    def build(self, in_features: int) -> Baseline | nn.Module:
        """A new one, for a layer with inputs of this width."""
        baseline: Baseline | nn.Module = self.make(in_features) if self.network else self.make()
        return baseline


@dataclass(frozen=True)
class TaskEntry(Entry):
    """Data and a model for it, see :class:`inference.tasks.Task`; made without arguments."""

    kind = "task"
