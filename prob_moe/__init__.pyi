# The one list of what can be imported from the top: type checkers read it, and so does __init__.py.

from prob_moe.distributions import (
    AssignmentDistribution as AssignmentDistribution,
    CapacitySkip as CapacitySkip,
    DependentRounding as DependentRounding,
    Draw as Draw,
    GumbelMatching as GumbelMatching,
    IndependentRouting as IndependentRouting,
    SelectedMixture as SelectedMixture,
)
from prob_moe.estimators import (
    Baseline as Baseline,
    DecayingAverage as DecayingAverage,
    LeaveOneOut as LeaveOneOut,
    Network as Network,
    TraceBalanced_ELBO as TraceBalanced_ELBO,
    TraceMixture_ELBO as TraceMixture_ELBO,
    TraceRouting_ELBO as TraceRouting_ELBO,
)
from prob_moe.experts import BatchedExperts as BatchedExperts
from prob_moe.layer import (
    ExpertLayer as ExpertLayer,
    record_routing as record_routing,
    replay_routing as replay_routing,
)
from prob_moe.mixture import MixtureOfExperts as MixtureOfExperts

__version__: str
