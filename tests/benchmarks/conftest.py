"""After pytest-benchmark's own table, the one of ratios."""

import platform
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.table import rows, table


def cpu() -> str:
    """The name of the processor, as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def pytest_terminal_summary(config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    records = [
        {"extra_info": bench.extra_info, "stats": {"min": bench.stats.min}}
        for bench in getattr(session, "benchmarks", [])
        if "what" in bench.extra_info and bench.stats.rounds
    ]
    if records:
        Console(width=180).print(table(rows(records), cpu()))
