"""What is ours, a line each."""

import math
from functools import partial
from importlib import import_module
from typing import Any

from inference.registry.entries import (
    ALL_EXPERTS,
    SLOTS,
    BaselineEntry,
    EstimatorEntry,
    Objective,
    ProcedureEntry,
    RuleEntry,
    RuleSetting,
    TaskEntry,
)
from inference.registry.shelves import Registry
from models.digits import CostBaseline
from prob_moe import rules
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import (
    DecayingAverage,
    LeaveOneOut,
    NoBaseline,
    TraceBalanced_ELBO,
    TraceMixture_ELBO,
    TraceRouting_ELBO,
)

#: everything that has a name
REGISTRY = Registry()
label = REGISTRY.label

REGISTRY.add(
    ProcedureEntry(
        "independent",
        IndependentRouting,
        "every datapoint draws its expert from its router; no capacity",
        weighted=False,
        takes_several=True,
    ),
    ProcedureEntry(
        "skip",
        CapacitySkip,
        "every datapoint draws its expert; a random part of what exceeds the capacity is dropped",
        takes_several=True,
    ),
    ProcedureEntry(
        "Gumbel-Matching",
        GumbelMatching,
        "the best assignment within capacity under Gumbel-perturbed logits; nobody is dropped",
    ),
    ProcedureEntry(
        "dependent rounding",
        DependentRounding,
        "rounding of the minimum-variance marginals within capacity",
        has_law=False,
        takes_several=True,
    ),
)

_R = "the router objective R = Σ_i E[log p(y_i | x_i, z_i)] with z_i ~ p_i independently"

REGISTRY.add(
    EstimatorEntry(
        "weighted",
        TraceRouting_ELBO,
        f"{_R}; the procedure is a proposal, corrected by importance weights: unbiased where datapoints meet in the "
        "capacity only",
        takes_several=True,
    ),
    EstimatorEntry(
        "unweighted",
        partial(TraceRouting_ELBO, weighted=False),
        f"{_R}, without the weights that correct the procedure: biased, unless they are all 1",
    ),
    EstimatorEntry(
        "balanced",
        TraceBalanced_ELBO,
        "the balanced objective B = E[Σ_i log p(y_i | x_i, z_i)] with Z ~ the procedure, which is the model itself: "
        "unbiased",
        objective=Objective.BALANCED,
    ),
    EstimatorEntry(
        "mixture",
        TraceMixture_ELBO,
        "the mixture bound M = Σ_i E[log Σ_j w_ij p(y_i | x_i, j)] over the selected experts j, a lower bound of the "
        "mixture's log-likelihood; the gradient holds the procedure fixed as a proposal",
        objective=Objective.MIXTURE,
        takes_several=True,
        needs_several=True,
    ),
)

REGISTRY.add(
    BaselineEntry("none", NoBaseline),
    BaselineEntry("decaying", DecayingAverage),
    BaselineEntry("neural", CostBaseline, network=True),
    BaselineEntry("leave-one-out", LeaveOneOut, needs_particles=True),
)

_GATED = (Objective.GATED,)
_BALANCING: dict[str, Any] = {"balancing": "load_balancing"}


def _transport(setting: RuleSetting) -> dict[str, Any]:
    # With one expert per datapoint every entry of the plan is 1, so the softmax is the gate.
    return {"num_selected": 1, "gate": "softmax", "max_iterations": 30}


def _no_window(setting: RuleSetting) -> dict[str, Any]:
    # Inside the authors' window of 0.1 there is mostly one expert, hence no gradient.
    return {"epsilon": math.inf}


def _loss_free(setting: RuleSetting) -> dict[str, Any]:
    # A bias that moves would change the model between draws.
    still = {} if setting.learns else {"rate": 0.0}
    return {"num_experts": setting.num_experts, "batch_shape": setting.batch_shape, **still}


_STUDY, _GRADIENTS = ("study",), ("gradients",)
_TEXT = ("study", "fit")
#: no experts of one's own, a look at what follows when it serves, or something to know or to move in every step
_NO_TEXT = ("study", "gradients")

REGISTRY.add(
    RuleEntry("sampled gate", rules.SampledGate, objectives=_GATED, **_BALANCING),
    RuleEntry("SparseMixer v1", rules.SparseMixer, objectives=_GATED, commands=_TEXT, **_BALANCING),
    RuleEntry("SparseMixer v2", rules.SparseMixerV2, objectives=_GATED, commands=_TEXT, **_BALANCING),
    RuleEntry(
        "SparseMixer v1, no window", rules.SparseMixer, objectives=_GATED, options=_no_window, commands=_GRADIENTS
    ),
    RuleEntry(
        "SparseMixer v2, no window", rules.SparseMixerV2, objectives=_GATED, options=_no_window, commands=_GRADIENTS
    ),
    RuleEntry(
        "Gumbel-softmax", rules.GumbelSoftmax, objectives=(Objective.ROUTER,), evaluations=ALL_EXPERTS, **_BALANCING
    ),
    # Used as if it sampled.
    RuleEntry("Switch", rules.Switch, objectives=(Objective.GATED, Objective.OWN), **_BALANCING),
    RuleEntry("top-2 gates", rules.TopGates, evaluations=2, **_BALANCING),
    RuleEntry("GShard", rules.GShard, objectives=_GATED, evaluations=2, commands=_TEXT, **_BALANCING),
    RuleEntry("gated sets", rules.GatedSets, objectives=_GATED, evaluations=2, commands=_TEXT),
    RuleEntry("quantile balancing", rules.QuantileBalancing, evaluations=2, commands=_STUDY),
    # The input is mixed into the output where both have the same features.
    RuleEntry("BASE", rules.BASELayer, options=lambda setting: {"carry": setting.same_features}),
    RuleEntry("S-BASE", rules.SinkhornBASE),
    RuleEntry("expert choice", rules.ExpertChoice, looks_ahead=True, commands=_NO_TEXT),
    RuleEntry(
        "σ-MoE",
        rules.SigmaMoE,
        balancing="entropy_weight",
        options=lambda setting: {"num_selected": 1},
        commands=_TEXT,
    ),
    RuleEntry("σ-MoE, top 2", rules.SigmaMoE, commands=_GRADIENTS),
    RuleEntry("loss-free bias", rules.LossFreeBias, options=_loss_free, commands=_NO_TEXT),
    RuleEntry(
        "sparse transport", rules.SparsityConstrainedTransport, options=_transport, looks_ahead=True, commands=_STUDY
    ),
    RuleEntry("sparse transport, top 2", rules.SparsityConstrainedTransport, commands=_GRADIENTS),
    RuleEntry("hash", rules.HashRouting, fixed=True, commands=_NO_TEXT),
    RuleEntry("random", rules.RandomRouting, fixed=True, commands=_STUDY),
    RuleEntry("DenseMixer", rules.DenseMixer, exact=False, evaluations=ALL_EXPERTS),
    RuleEntry(
        "dense mixture", rules.DenseMixture, dense=True, evaluations=ALL_EXPERTS, limited=False, commands=_NO_TEXT
    ),
    RuleEntry("SMEAR", rules.SMEAR, dense=True, evaluations=ALL_EXPERTS, limited=False, commands=_NO_TEXT),
    RuleEntry(
        "Soft MoE", rules.SoftMoE, dense=True, evaluations=SLOTS, looks_ahead=True, limited=False, commands=_NO_TEXT
    ),
)


def _task(name: str, module: str = "inference.tasks") -> Any:
    # The tasks read this registry.
    return getattr(import_module(module), name)()


REGISTRY.add(
    TaskEntry("digits", partial(_task, "Digits")),
    TaskEntry("piecewise", partial(_task, "Piecewise")),
    TaskEntry("language", partial(_task, "Language", "inference.language_task")),
)
