"""
Mixture-of-experts routing as an explicit random variable, for Pyro.

What most programs need can be imported from here; ``import prob_moe`` alone loads none of it, nor torch. Rules for
routing are in :mod:`prob_moe.rules`, numerics on plain tensors in :mod:`prob_moe.numerics`, checks of distributions and
estimators of one's own in :mod:`prob_moe.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prob_moe.distributions import (
        AssignmentDistribution as AssignmentDistribution,
    )
    from prob_moe.distributions import (
        CapacitySkip as CapacitySkip,
    )
    from prob_moe.distributions import (
        DependentRounding as DependentRounding,
    )
    from prob_moe.distributions import (
        Draw as Draw,
    )
    from prob_moe.distributions import (
        GumbelMatching as GumbelMatching,
    )
    from prob_moe.distributions import (
        IndependentRouting as IndependentRouting,
    )
    from prob_moe.distributions import (
        SelectedMixture as SelectedMixture,
    )
    from prob_moe.estimators import (
        Baseline as Baseline,
    )
    from prob_moe.estimators import (
        DecayingAverage as DecayingAverage,
    )
    from prob_moe.estimators import (
        LeaveOneOut as LeaveOneOut,
    )
    from prob_moe.estimators import (
        Network as Network,
    )
    from prob_moe.estimators import (
        TraceBalanced_ELBO as TraceBalanced_ELBO,
    )
    from prob_moe.estimators import (
        TraceMixture_ELBO as TraceMixture_ELBO,
    )
    from prob_moe.estimators import (
        TraceRouting_ELBO as TraceRouting_ELBO,
    )
    from prob_moe.experts import BatchedExperts as BatchedExperts
    from prob_moe.layer import ExpertLayer as ExpertLayer
    from prob_moe.layer import record_routing as record_routing
    from prob_moe.layer import replay_routing as replay_routing
    from prob_moe.mixture import MixtureOfExperts as MixtureOfExperts

__version__ = "0.1.0"

_ROOMS = {
    "distributions": [
        "AssignmentDistribution",
        "CapacitySkip",
        "DependentRounding",
        "Draw",
        "GumbelMatching",
        "IndependentRouting",
        "SelectedMixture",
    ],
    "estimators": [
        "Baseline",
        "DecayingAverage",
        "LeaveOneOut",
        "Network",
        "TraceBalanced_ELBO",
        "TraceMixture_ELBO",
        "TraceRouting_ELBO",
    ],
    "experts": ["BatchedExperts"],
    "layer": ["ExpertLayer", "record_routing", "replay_routing"],
    "mixture": ["MixtureOfExperts"],
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(import_module(f"prob_moe.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF])
