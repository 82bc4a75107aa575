"""Assignment procedures as Pyro distributions: one file each, one contract (:class:`AssignmentDistribution`)."""

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.capacity import capacity_from_factor
from prob_moe.distributions.capacity_skip import CapacitySkip
from prob_moe.distributions.dependent_rounding import DependentRounding
from prob_moe.distributions.draw import Draw, MatchingDraw, RoundingDraw, draw_of
from prob_moe.distributions.gumbel_matching import GumbelMatching
from prob_moe.distributions.independent_routing import IndependentRouting
from prob_moe.distributions.keyed_draws import KeyedDraws, draws_at
from prob_moe.distributions.selected_mixture import SelectedMixture, mixture_bound

__all__ = [
    "AssignmentDistribution",
    "CapacitySkip",
    "DependentRounding",
    "Draw",
    "GumbelMatching",
    "IndependentRouting",
    "KeyedDraws",
    "MatchingDraw",
    "RoundingDraw",
    "SelectedMixture",
    "capacity_from_factor",
    "draw_of",
    "draws_at",
    "mixture_bound",
]
