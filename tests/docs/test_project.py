"""The files about the project agree with the project."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import prob_moe

ROOT = Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_run_targets_that_exist(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    used = {target for command in commands for target in re.findall(r"\bmake ([\w-]+)", command)}
    assert used
    assert used <= TARGETS


def test_templates_have_a_head_that_can_be_read() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert templates
    for template in templates:
        head = yaml.safe_load(template.read_text(encoding="utf-8").split("---\n")[1])
        assert {"name", "about"} <= set(head)


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == prob_moe.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["title"].startswith("Unbiased Gradient Estimation with Balanced Assignments")


def test_dev_has_every_extra_but_the_peers_of_the_benchmarks() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.search(r"prob_moe\[(.*)\]", " ".join(extras["dev"]))
    assert named
    assert set(named[1].split(",")) == set(extras) - {"dev", "peers"}
