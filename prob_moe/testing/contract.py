"""One call that holds an assignment distribution to its contract."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from rich.table import Table

from prob_moe.distributions import AssignmentDistribution
from prob_moe.testing.clauses import CLAUSES
from prob_moe.testing.clauses.setting import SIZES, ClauseFailed, ClauseSkipped, Setting, Size

#: from its setting to the numbers that it saw, if it has any to tell
Clause = Callable[[Any], str | None]


class ClauseResult(NamedTuple):
    """What became of a clause; the detail has the numbers, or the reason why it was skipped."""

    clause: str
    outcome: Literal["passed", "skipped", "failed"]
    detail: str


@dataclass(frozen=True)
class ContractReport:
    """What became of all clauses."""

    distribution: str
    results: tuple[ClauseResult, ...]

    @property
    def passed(self) -> list[str]:
        return [result.clause for result in self.results if result.outcome == "passed"]

    @property
    def skipped(self) -> dict[str, str]:
        """Clause and reason."""
        return {result.clause: result.detail for result in self.results if result.outcome == "skipped"}

    @property
    def failed(self) -> dict[str, str]:
        """Clause and numbers."""
        return {result.clause: result.detail for result in self.results if result.outcome == "failed"}

    def table(self) -> Table:
        """:returns: a table for ``rich.print``."""
        table = Table("clause", "outcome", "detail", title=f"Contract of {self.distribution}")
        colours = {"passed": "green", "skipped": "yellow", "failed": "red"}
        for result in self.results:
            table.add_row(result.clause, f"[{colours[result.outcome]}]{result.outcome}", result.detail)
        return table

    def __str__(self) -> str:
        lines = [f"{result.outcome:8}{result.clause}: {result.detail}".rstrip(": ") for result in self.results]
        return "\n".join([self.distribution, *lines])


class ContractError(AssertionError):
    """
    A distribution, or a rule, breaks its contract; the message names the clauses, with the numbers.

    :param report: all that was found, also kept as ``error.report``.
    """

    def __init__(self, report: ContractReport) -> None:
        self.report = report
        failures = [f"clause '{clause}': {detail}" for clause, detail in report.failed.items()]
        count = f"{len(failures)} of {len(report.results)} clauses"
        super().__init__("\n".join([f"{report.distribution} breaks {count} of its contract", *failures]))


def check_assignment_distribution(
    make: Callable[..., AssignmentDistribution],
    *,
    clauses: Iterable[str] | None = None,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    num_samples: int = 20_000,
    max_standard_errors: float = 5.0,
    log_prob_tolerance: float = 1e-6,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ContractReport:
    r"""
    Hold an assignment distribution to the whole contract of
    :class:`~prob_moe.distributions.AssignmentDistribution`: shapes, support, capacity, enumeration, the law of
    ``log_prob`` against enumeration, frequencies and finite differences, unbiased weights, and behaviour in a program.

    All clauses are tried before anything is raised, so that one call shows everything that is wrong. Clauses on
    ``log_prob`` and ``enumerate_support`` are skipped where these raise NotImplementedError; the clause on padding
    where ``make`` takes no ``mask``. Statistical clauses bound the largest deviation of all coordinates in standard
    errors, with a fixed seed; the random state of the caller is left as it was.

    :param make: ``make(logits, capacity=c)`` -> distribution: the class, or any function that sets further options.
        Where it takes ``mask`` and ``validate_args``, these are tried too. ``functools.partial(MyRouting,
        num_selected=2)`` is held to the contract of sets of experts.
    :param clauses: names of the clauses to check, of :data:`~prob_moe.testing.CLAUSES`; all by default.
    :param sizes: triples (n, k, capacity) to try; the first serves for clauses that need only one. Those with few
        enough choices are enumerated. Where m experts are selected, give :func:`~prob_moe.testing.sizes_of_sets`.
    :param num_samples: draws of every statistical clause.
    :param max_standard_errors: deviations below this pass.
    :param log_prob_tolerance: the relative error of the probability that ``log_prob`` claims for itself; above the
        default for numerical integrals. Also bounds the relative error of its gradient.
    :param device: where the logits live.
    :param seed: of the random numbers in every clause.
    :returns: what was passed and skipped, with numbers; ``report.table()`` prints it.
    :raises ContractError: an AssertionError that lists all clauses that failed, with the numbers.
    :raises ValueError: on an unknown clause, or fewer than 1000 samples.

    >>> from prob_moe.distributions import CapacitySkip
    >>> report = check_assignment_distribution(CapacitySkip, clauses=["capacity holds", "weights are unbiased"])
    >>> report.passed
    ['capacity holds', 'weights are unbiased']

    Without its weights, skipping is biased:

    >>> class Unweighted(CapacitySkip):
    ...     def importance_weights(self, value):
    ...         return (value >= 0).to(self.logits.dtype)
    >>> check_assignment_distribution(Unweighted, clauses=["weights are unbiased"])
    Traceback (most recent call last):
    prob_moe.testing.contract.ContractError: Unweighted breaks 1 of 1 clauses of its contract
    clause 'weights are unbiased': at n=6 k=3 capacity=2, E[w 1{z_... = ...}] is ... standard errors off
    """
    chosen = chosen_clauses(clauses, CLAUSES)
    if num_samples < 1000:
        raise ValueError(f"num_samples must be at least 1000 for standard errors to mean something, got {num_samples}")
    if not sizes:
        raise ValueError("sizes must hold at least one triple (n, k, capacity)")
    setting = Setting(
        make=make,
        sizes=tuple(Size(*size) for size in sizes),
        num_samples=num_samples,
        max_standard_errors=max_standard_errors,
        log_prob_tolerance=log_prob_tolerance,
        device=torch.device(device),
    )
    return hold_to(chosen, setting, _name_of(setting), seed, setting.device)


def _name_of(setting: Setting) -> str:
    """
    :raises ValueError: if ``make`` gives something else than an assignment distribution.
    """
    routing = setting.routing(setting.sizes[0])
    name = type(routing).__name__
    if not isinstance(routing, AssignmentDistribution):
        raise ValueError(f"make must return an AssignmentDistribution, got {name}; subclass it")
    return name


def chosen_clauses(names: Iterable[str] | None, known: Mapping[str, Clause]) -> dict[str, Clause]:
    """
    :param names: None for all.
    :raises ValueError: on an unknown name.
    """
    chosen = list(known) if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"unknown clauses {unknown}; known are {list(known)}")
    return {name: known[name] for name in chosen}


def hold_to(
    clauses: Mapping[str, Clause], setting: Any, name: str, seed: int, device: torch.device | None = None
) -> ContractReport:
    """
    :param setting: what every clause is called with.
    :param name: of what is checked.
    :param device: whose random numbers are seeded too; None for the processor's alone.
    :raises ContractError: if a clause fails.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    report = ContractReport(name, tuple(_result(*clause, setting, seed, devices) for clause in clauses.items()))
    if report.failed:
        raise ContractError(report)
    return report


def _result(name: str, clause: Clause, setting: Any, seed: int, devices: list[torch.device]) -> ClauseResult:
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            return ClauseResult(name, "passed", clause(setting) or "")
        except ClauseSkipped as reason:
            return ClauseResult(name, "skipped", str(reason))
        except ClauseFailed as failure:
            return ClauseResult(name, "failed", str(failure))
        except Exception as error:  # whatever is under development raises is a finding
            return ClauseResult(name, "failed", f"raised {type(error).__name__}: {error}")
