"""Claims as Markdown, and pages whose tables are those of the command."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from inference.claims.verdicts import DOES_NOT, ERROR, HOLDS, OnTask, Verdict, verdicts
from inference.routing_study.report import MEASURES, arm_lines, compute_lines, gate_lines, markdown, number, report

#: a block of a page is what stands between such a line with its name and the next one that ends a block
BEGIN, END = "<!-- table: {} -->", "<!-- end of table -->"
_BLOCK = re.compile(rf"^{BEGIN.format('(.*?)')}\n.*?^{END}$", re.MULTILINE | re.DOTALL)


def overall_lines(found: list[Verdict]) -> list[str]:
    """A line a claim: sentence, verdict, on how many tasks, and of how many comparisons."""
    header = ["claim", "of", "verdict", "holds on", "does not on", "of tasks", "comparisons"]
    body = [
        [each.claim.sentence, each.claim.of, each.verdict if each.tasks else "no task"]
        + [str(count) for count in (each.count(HOLDS), each.count(DOES_NOT), len(each.tasks), each.num_comparisons)]
        for each in found
    ]
    total = sum(each.num_comparisons for each in found)
    told = (
        f"{len(found)} claims, {total} comparisons. A verdict on a task stands at an error of {ERROR:.0%}, joint over "
        "all tasks of a claim and, where it is against the claim, over all of its comparisons. Overall a claim does "
        "not hold if it does not on one task, and holds if it holds on more than half of them."
    )
    return [told, "", *markdown(header, body)]


def task_lines(verdict: Verdict) -> list[str]:
    """One claim, a line a task."""
    header = ["task", "the comparison that speaks least for it", "ahead by", "holds", "opposite holds", "verdict"]
    body = [
        [
            each.task,
            each.worst.comparison.label,
            _number(each),
            f"{each.ahead} of {len(each.differences)}",
            str(each.behind),
            each.verdict,
        ]
        for each in verdict.tasks
    ]
    return markdown(header, body)


def _number(each: OnTask) -> str:
    measure = each.worst.measure
    _, _, _, unit = MEASURES[measure]
    middle, low, high = (number(value, measure) for value in (each.worst.mean, *each.interval))
    return f"{middle}{unit or ' nats'} [{low}, {high}]"


def blocks(table: pd.DataFrame) -> dict[str, str]:
    """
    All tables that a page can have, by name: ``gates``, ``claims``, ``claim NAME``, ``arms TASK`` and ``compute TASK``.

    :param table: of :mod:`inference.routing_study.schema`.
    """
    found = verdicts(table)
    frames = report(table).frames
    final, compute = frames["final"], frames["compute"]
    lines = {"gates": gate_lines(frames["gates"]), "claims": overall_lines(found)}
    lines |= {f"claim {each.claim.name}": task_lines(each) for each in found if each.tasks}
    for task in dict.fromkeys(final.get("task", [])):
        lines[f"arms {task}"] = arm_lines(final, task)
        lines[f"compute {task}"] = compute_lines(compute, task)
    return {name: "\n".join(own) for name, own in lines.items()}


def everything(table: pd.DataFrame) -> str:
    """All claims, as the command prints them."""
    found = verdicts(table)
    parts = ["\n".join(overall_lines(found))]
    for each in found:
        if each.tasks:
            head = f"### {each.claim.sentence}\n\nOf: {each.claim.of}. Overall: {each.verdict}."
            parts.append("\n".join([head, "", *task_lines(each)]))
    return "\n\n".join(parts) + "\n"


def rewritten(page: str, tables: Mapping[str, str]) -> str:
    """
    A page with its blocks as the table has them.

    :param page: its text; a block stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
    :param tables: of :func:`blocks`.
    :raises ValueError: if a block's name is none of these, or there is no block.
    """
    names = [match[1] for match in _BLOCK.finditer(page)]
    unknown = [name for name in names if name not in tables]
    if unknown:
        raise ValueError(f"the page has a block {unknown[0]!r}, which must be one of {', '.join(tables)}")
    if not names:
        raise ValueError(f"the page has no block, between lines {BEGIN.format('NAME')} and {END}")

    def block(match: re.Match[str]) -> str:
        return f"{BEGIN.format(match[1])}\n{tables[match[1]]}\n{END}"

    return _BLOCK.sub(block, page)


def read_table(path: Path) -> pd.DataFrame:
    """
    :param path: a CSV file, which may be compressed.
    :raises ValueError: if it is no table of the study.
    """
    from inference.routing_study.schema import check

    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file: {error}") from None
    check(table)
    return table
