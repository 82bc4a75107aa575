"""All arms by name, and which of them the studies take."""

from inference.registry.builtin import REGISTRY
from inference.study.arms.arm import Arm, Group
from inference.study.arms.fixed import of_fixed_experts
from inference.study.arms.objectives import of_the_likelihood, of_the_router_objective
from inference.study.arms.procedures import of_procedure
from inference.study.arms.rules import of_rule


def all_arms() -> dict[str, Arm]:
    """:returns: all arms by name, group by group."""
    found = [
        *of_the_router_objective(),
        *of_the_likelihood(),
        *(arm for entry in REGISTRY.procedures.values() for arm in of_procedure(entry)),
        *(of_rule(entry) for entry in REGISTRY.rules.values() if "study" in entry.commands),
        *of_fixed_experts(),
    ]
    order = list(Group)
    return {arm.name: arm for arm in sorted(found, key=lambda arm: order.index(arm.group))}


#: what the quick study leaves out on two lines: what pays for a network, and what is level with another arm there
LONGER = (
    "rl-r",
    "gumbel-softmax",
    "dependent-rounding-unweighted",
    "independent-leave-one-out",
    "independent-pairs",
    "unordered-set",
    "sum-and-sample",
    "independent-mixture-bound",
    "skip-mixture-bound",
    "dependent-rounding-guided-bound",
    "unlimited-rounding-mixture-bound",
    "iwae",
)

#: what the pieces of a line compare: objectives, and ways to estimate them
PIECES = (
    "exact-gradient",
    "independent-leave-one-out",
    "independent-pairs",
    "exact-marginal",
    "em",
    "iwae",
    "independent-mixture-bound",
    "skip-mixture-bound",
    "dependent-rounding-mixture-bound",
    "dependent-rounding-guided-bound",
    "unlimited-rounding-mixture-bound",
    "switch",
    "top-2-gates",
)
#: and in short
FEW_PIECES = (
    "exact-gradient",
    "independent-leave-one-out",
    "exact-marginal",
    "dependent-rounding-mixture-bound",
    "switch",
)


def core() -> tuple[str, ...]:
    """:returns: estimators of the router objective, their twins and one bound, which the quick study runs."""
    groups = (Group.ROUTER, Group.TWIN, Group.MIXTURE)
    return tuple(name for name, arm in all_arms().items() if arm.group in groups and name not in LONGER)
