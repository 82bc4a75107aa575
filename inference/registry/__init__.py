"""
What has a name on the command line: assignment distributions (*procedures*), rules, estimators, baselines and tasks.

``builtin`` lists what is ours, a line each; ``plugins`` adds what others bring, one file each; ``entries`` says what an
entry holds. Everything that reads names, offers them or shows them asks the one ``REGISTRY``.
"""

from inference.registry.entries import (
    BaselineEntry,
    Entry,
    EstimatorEntry,
    Objective,
    ProcedureEntry,
    RuleEntry,
    RuleSetting,
    TaskEntry,
)
from inference.registry.shelves import Registry

__all__ = [
    "BaselineEntry",
    "Entry",
    "EstimatorEntry",
    "Objective",
    "ProcedureEntry",
    "Registry",
    "RuleEntry",
    "RuleSetting",
    "TaskEntry",
]
