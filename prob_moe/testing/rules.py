"""One call that holds a rule to what every rule owes."""

from collections.abc import Callable, Iterable
from inspect import signature

from prob_moe.rules import RoutingRule
from prob_moe.testing.contract import ContractReport, chosen_clauses, hold_to
from prob_moe.testing.rule_clauses import RULE_CLAUSES, RuleSetting


def check_rule(
    make: Callable[..., RoutingRule],
    *,
    clauses: Iterable[str] | None = None,
    num_experts: int = 3,
    limited: bool | None = None,
    seed: int = 0,
) -> ContractReport:
    """
    Hold a rule to the contract of :class:`~prob_moe.rules.RoutingRule`: shapes, dtypes, finite gradients, few
    datapoints, batches, padding and what stands in it, capacity, seeds, copies, errors, the objective's name.

    What its outputs and gradients should be only its own test can know.

    :param make: the class, or any function that makes the rule for ``num_experts`` experts; called with ``capacity`` or
        ``capacity_factor`` where it takes them. Where its ``forward`` takes ``identity``, it gets one.
    :param clauses: names of the clauses to check, of :data:`~prob_moe.testing.RULE_CLAUSES`; all by default.
    :param num_experts: k, at least 3.
    :param limited: whether capacity bounds what an expert processes, in training and in serving; by default where
        ``make`` takes one.
    :param seed: of the random numbers in every clause.
    :returns: what was passed and skipped.
    :raises ContractError: an AssertionError that lists all clauses that failed.
    :raises ValueError: on an unknown clause, or something that is no rule.

    >>> from prob_moe.rules import Switch
    >>> check_rule(Switch, clauses=["capacity holds", "padding takes no part"]).passed
    ['capacity holds', 'padding takes no part']
    """
    chosen = chosen_clauses(clauses, RULE_CLAUSES)
    if num_experts < 3:
        raise ValueError(f"num_experts must be at least 3, got {num_experts}")
    rule = make()
    name = type(rule).__name__
    if not isinstance(rule, RoutingRule):
        raise ValueError(f"make must return a RoutingRule, got {name}; subclass it")
    if limited is None:
        limited = _takes_capacity(make)
    setting = RuleSetting(make, num_experts, limited, "identity" in signature(rule.forward).parameters)
    return hold_to(chosen, setting, name, seed)


def _takes_capacity(make: Callable[..., RoutingRule]) -> bool:
    try:
        make(capacity=1)
    except TypeError:
        return False
    return True
