"""
The names of all ways to route and to train, once for all commands: options, JSON and CSV have a name as it is typed
(``gumbel-matching``), tables and pictures its label (Gumbel-Matching). A name is its label's
:func:`~inference.names.spelling`.
"""

from inference.names import spelling
from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)

#: the assignment distributions by name
PROCEDURES: dict[str, type[AssignmentDistribution]] = {
    "independent": IndependentRouting,
    "skip": CapacitySkip,
    "gumbel-matching": GumbelMatching,
    "dependent-rounding": DependentRounding,
}

_PROCEDURES = ("independent", "skip", "Gumbel-Matching", "dependent rounding")
#: what is not an assignment distribution with the router objective
_OTHERS = (
    "exact gradient",
    "RL-R",
    "dependent rounding, router marginals",
    "sampled gate",
    "SparseMixer v1",
    "SparseMixer v2",
    "SparseMixer v1, no window",
    "SparseMixer v2, no window",
    "Gumbel-softmax",
    "Switch",
    "BASE",
    "S-BASE",
    "expert choice",
    "σ-MoE",
    "σ-MoE, top 2",
    "loss-free bias",
    "sparse transport",
    "sparse transport, top 2",
    "hash",
    "DenseMixer",
    "dense mixture",
    "SMEAR",
    "Soft MoE",
)
_UNWEIGHTED = tuple(f"{label}, unweighted" for label in _PROCEDURES[1:])
_BALANCED = ("skip, balanced", "Gumbel-Matching, balanced")

#: the label of every name
LABELS = {spelling(label): label for label in (*_PROCEDURES, *_UNWEIGHTED, *_BALANCED, *_OTHERS)}


def label(name: object) -> str:
    """How tables and pictures call what has a name; one that is not known is its own label."""
    return LABELS.get(str(name), str(name))
