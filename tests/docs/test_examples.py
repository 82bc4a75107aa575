"""
The examples of the site's pages run, and print what stands below them.

Blocks of ``python`` on a page share their names, from top to bottom, and a block of ``text`` is what the one before it
prints. The pages on things with a name take theirs from CONTRIBUTING.md, which has a test of its own.
"""

import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PAGES = [page for page in sorted(NOTEBOOKS.rglob("*.md")) if "```python" in page.read_text(encoding="utf-8")]


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(
        r"^```(python|text)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(NOTEBOOKS)) for page in PAGES])
def test_a_page_prints_what_it_says(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    printed = None
    for kind, text in blocks(page):
        if kind == "python":
            assert not printed, f"{page.name} does not show what it prints: {printed}"
            exec(compile(text, str(page), "exec"), names)
            printed = capsys.readouterr().out
        else:
            assert printed == text
            printed = None
    assert not printed, f"{page.name} does not show what it prints: {printed}"


def test_there_are_examples() -> None:
    assert {"plain_torch", "transformer", "several_experts", "recorded_routing"} <= {page.stem for page in PAGES}
