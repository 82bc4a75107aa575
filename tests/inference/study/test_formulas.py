"""Every arm names the tests that hold it to its formula; who adds an arm holds it to one first."""

import ast
from functools import cache
from pathlib import Path

import pytest

from inference.study.arms import all_arms
from tests.inference.study.formulas import FORMULAS

ROOT = Path(__file__).parents[3]
LEFT_OUT = ("pytest.mark.slow", "pytest.mark.skip", "pytest.mark.xfail")


@cache
def runnable(file: str) -> frozenset[str]:
    """The names of the tests of a file that run by default."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    functions = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef))
    return frozenset(
        function.name
        for function in functions
        if not any(ast.unparse(mark).startswith(LEFT_OUT) for mark in function.decorator_list)
    )


def missing(arms: set[str], formulas: dict[str, tuple[str, ...]]) -> list[str]:
    """What is wrong, in words."""
    found = [f"{name} names no test of its formula" for name in sorted(arms) if not formulas.get(name)]
    found += [f"{name} is no arm" for name in sorted(set(formulas) - arms)]
    for name, tests in formulas.items():
        for test in tests:
            file, _, function = test.partition("::")
            if function not in runnable(file):
                found.append(f"{name}: {file} has no {function}")
    return found


def test_every_arm_names_the_tests_of_its_formula() -> None:
    assert not missing({name for name, arm in all_arms().items() if not arm.origin}, FORMULAS)


@pytest.mark.parametrize(
    ("arms", "formulas", "message"),
    [
        ({"switch", "new"}, FORMULAS, "new names no test of its formula"),
        ({"switch"}, {"switch": ()}, "switch names no test of its formula"),
        (set(), {"old": FORMULAS["switch"]}, "old is no arm"),
        ({"switch"}, {"switch": ("tests/rules/test_top_one.py::test_renamed",)}, "has no test_renamed"),
        ({"switch"}, {"switch": ("tests/rules/no_file.py::test_it",)}, "tests/rules/no_file.py has no test_it"),
    ],
)
def test_what_is_missing_is_found(arms: set[str], formulas: dict[str, tuple[str, ...]], message: str) -> None:
    assert any(message in line for line in missing(arms, formulas))
