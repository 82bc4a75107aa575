"""One call that holds a rule to what every rule owes."""

from collections.abc import Callable, Iterable
from inspect import signature

import torch

from prob_moe.rules import RoutingRule
from prob_moe.testing.clauses.setting import ClauseFailed, ClauseSkipped
from prob_moe.testing.contract import ClauseResult, ContractError, ContractReport
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
    chosen = list(RULE_CLAUSES) if clauses is None else list(clauses)
    unknown = [clause for clause in chosen if clause not in RULE_CLAUSES]
    if unknown:
        raise ValueError(f"unknown clauses {unknown}; known are {list(RULE_CLAUSES)}")
    if num_experts < 3:
        raise ValueError(f"num_experts must be at least 3, got {num_experts}")
    rule = make()
    name = type(rule).__name__
    if not isinstance(rule, RoutingRule):
        raise ValueError(f"make must return a RoutingRule, got {name}; subclass it")
    if limited is None:
        limited = _takes_capacity(make)
    setting = RuleSetting(make, num_experts, limited, "identity" in signature(rule.forward).parameters)
    report = ContractReport(name, tuple(_result(clause, setting, seed) for clause in chosen))
    if report.failed:
        raise ContractError(report)
    return report


def _takes_capacity(make: Callable[..., RoutingRule]) -> bool:
    try:
        make(capacity=1)
    except TypeError:
        return False
    return True


def _result(clause: str, setting: RuleSetting, seed: int) -> ClauseResult:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            RULE_CLAUSES[clause](setting)
            return ClauseResult(clause, "passed", "")
        except ClauseSkipped as reason:
            return ClauseResult(clause, "skipped", str(reason))
        except ClauseFailed as failure:
            return ClauseResult(clause, "failed", str(failure))
        except Exception as error:  # whatever a rule under development raises is a finding
            return ClauseResult(clause, "failed", f"raised {type(error).__name__}: {error}")
