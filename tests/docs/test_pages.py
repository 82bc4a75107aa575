"""What the pages of the site promise: that nothing public is left out, and that what they name exists."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import prob_moe

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
#: modules that other rooms share, whose names are not meant for users
HELPERS = {"padding", "prediction", "recomputation"}


def test_every_public_room_has_a_page_of_the_reference() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(prob_moe.__path__) if not module.name.startswith("_")}
    pages = {page.stem for page in (NOTEBOOKS / "api").glob("*.md")} - {"index"}
    assert rooms - HELPERS == pages, "notebooks/api has one page for each room of prob_moe that is not in HELPERS"
    index = (NOTEBOOKS / "api" / "index.md").read_text(encoding="utf-8").splitlines()
    assert pages <= set(index), "notebooks/api/index.md lists every page"
    for name in pages:
        assert f"automodule:: prob_moe.{name}\n" in (NOTEBOOKS / "api" / f"{name}.md").read_text(encoding="utf-8")


def test_the_top_names_only_what_the_reference_has() -> None:
    for name, room in prob_moe._rooms().items():
        public = getattr(import_module(room), "__all__", None)
        assert public is None or name in public


def test_every_page_is_in_a_table_of_contents() -> None:
    """Sphinx says so too, at the end of a build that takes longer."""
    listed = set()
    for page in NOTEBOOKS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for entry in block.splitlines():
                if entry and not entry.startswith(":"):
                    listed |= {path.resolve() for path in page.parent.glob(f"{entry}.md")}
    assert listed == {page.resolve() for page in NOTEBOOKS.rglob("*.md")} - {(NOTEBOOKS / "index.md").resolve()}


def test_every_formula_names_tests_that_exist() -> None:
    """Who renames or moves a test names it anew on the pages of notebooks/proofs."""
    missing = []
    for page in sorted((NOTEBOOKS / "proofs").glob("*.md")):
        sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        for section in sections:
            title = f"{page.name}, section {section.splitlines()[0]!r}"
            if title == "index.md, section 'Notation'":
                continue
            _, held, tests = section.partition("\nHeld by")
            assert held, f"{title} names no test that holds it"
            named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
            assert named, f"{title} names no test that holds it"
            for file, test in named:
                path = NOTEBOOKS.parent / file
                functions = path.read_text(encoding="utf-8") if path.is_file() else ""
                if f"\ndef {test}(" not in functions:
                    missing.append(f"{title}: {file} has no {test}")
    assert not missing
