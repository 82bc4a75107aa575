"""Distributions, rules and baselines of a stranger, each in one file outside of the package."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from inference.cli import app
from inference.registry import plugins
from inference.registry.builtin import REGISTRY
from inference.registry.plugins import PluginError, load, load_installed
from inference.study.arms import all_arms
from prob_moe import BatchedExperts, ExpertLayer, record_routing
from prob_moe.testing import check_assignment_distribution, check_baseline, check_rule
from tests.inference.test_broken_input import refused

EXAMPLES = Path(__file__).parent / "examples"
DISTRIBUTION, RULE, BASELINE = (str(EXAMPLES / f"my_{kind}.py") for kind in ("distribution", "rule", "baseline"))


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test loads is forgotten."""
    monkeypatch.setattr(plugins, "_loaded", set())
    before = REGISTRY.state()
    yield
    REGISTRY.restore(before)


def done(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


# The kit, and the layer ----------------------------------------------------------------------------------------------


def test_the_distribution_passes_the_kit() -> None:
    load(DISTRIBUTION)
    report = check_assignment_distribution(REGISTRY.procedures["spaced-skip"].make)
    assert {"weights are unbiased", "capacity holds", "padding takes no part"} <= set(report.passed)


def test_the_baseline_passes_the_kit() -> None:
    load(BASELINE)
    baseline = REGISTRY.baselines["step-before"].build(0)
    assert check_baseline(baseline) == ["router", "balanced"]


def test_the_rule_passes_the_kit() -> None:
    load(RULE)
    report = check_rule(REGISTRY.rules["root-gate"].make)
    assert not report.skipped


@pytest.mark.parametrize("plugin", [DISTRIBUTION, RULE])
def test_they_train_in_the_layer(plugin: str) -> None:
    """Two regimes that one linear expert cannot serve."""
    load(plugin)
    load(BASELINE)
    torch.manual_seed(0)
    entry = REGISTRY.procedures["spaced-skip"] if plugin == DISTRIBUTION else REGISTRY.rules["root-gate"]
    baseline = REGISTRY.baselines["step-before"].build(0) if plugin == DISTRIBUTION else None
    layer = ExpertLayer(
        None, BatchedExperts(2, 2, None, 1), entry.make, capacity_factor=1.25, baseline=baseline, slots="load"
    )
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    x = torch.randn(200, 2)
    y = torch.where(x[:, 0] > 0, 2 * x[:, 1], -2 * x[:, 1])
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        with record_routing() as routed:
            loss = nn.functional.mse_loss(layer(x).squeeze(-1), y, reduction="none")
        surrogate = routed.surrogate(loss) if plugin == DISTRIBUTION else loss
        surrogate.mean().backward()
        optimizer.step()
        layer.update()
        losses.append(float(loss.detach().mean()))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


# The command line ----------------------------------------------------------------------------------------------------


def test_fit_knows_them_and_so_does_a_resumed_run(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    run = ["fit", "piecewise", "--num-epochs", "2", "--out", out]
    given = ["--plugin", DISTRIBUTION, "--plugin", BASELINE]
    done(*run, *given, "--assignment", "spaced-skip", "--baseline", "step-before")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["options"]["assignment"] == "spaced-skip"
    assert config["plugins"] == [DISTRIBUTION, BASELINE]
    finished = pd.read_csv(tmp_path / "run" / "fit_piecewise.csv")
    assert "step-before" in done("show", out, *given, "--json")

    # In a process that knows them not, the run says what it lacks; it runs nothing that a folder names.
    plugins._loaded.clear()
    REGISTRY.procedures._entries.pop("spaced-skip")
    REGISTRY.baselines._entries.pop("step-before")
    for command in (["fit", "piecewise", "--out", out, "--resume"], ["show", out, "--overwrite"]):
        message = refused(*command)
        assert "unknown procedure or rule 'spaced-skip'" in message
        assert message.endswith(f"give --plugin {DISTRIBUTION} --plugin {BASELINE}")
    done("fit", "piecewise", "--out", out, "--resume", *given)
    resumed = pd.read_csv(tmp_path / "run" / "fit_piecewise.csv")
    times = [name for name in finished if "seconds" in name]
    pd.testing.assert_frame_equal(finished.drop(columns=times), resumed.drop(columns=times))


@pytest.mark.slow
def test_study_trains_them_in_other_processes_too(tmp_path: Path) -> None:
    small = ["study", "--num-seeds", "2", "--num-steps", "2", "--jobs", "2", "--out", str(tmp_path)]
    arms = ["--arm", "spaced-skip", "--arm", "spaced skip, unweighted", "--arm", "root gate"]
    done(*small, "--plugin", DISTRIBUTION, "--plugin", RULE, *arms)
    names = {"spaced-skip", "spaced-skip-unweighted", "root-gate"}
    assert set(pd.read_csv(tmp_path / "arms.csv").arm) == names
    assert names <= set(all_arms())
    assert "spaced-skip-balanced" not in all_arms()


def test_a_study_trains_again_when_the_plugin_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    file.write_text((EXAMPLES / "my_rule.py").read_text())
    small = ["study", "--num-seeds", "2", "--num-steps", "2", "--pieces", "0", "--jobs", "1", "--out", str(tmp_path)]
    for comment in ("", "", "# another\n"):
        with file.open("a") as text:
            text.write(comment)
        done(*small, "--overwrite", "--plugin", str(file), "--arm", "root-gate")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_likelihood_knows_the_distribution(tmp_path: Path) -> None:
    arguments = ["likelihood", "--num-draws", "100", "--plugin", DISTRIBUTION, "--json", "--out", str(tmp_path)]
    content = json.loads(done(*arguments))
    assert "no joint log_prob" in content["procedures"]["spaced-skip"]["note"]


def test_gradients_compares_all_of_them() -> None:
    from inference.gradients.alternatives import alternatives
    from inference.gradients.estimators import estimators

    for plugin in (DISTRIBUTION, RULE, BASELINE):
        load(plugin)
    rows = {(row.name, row.baseline) for row in (*estimators(), *alternatives())}
    assert {("spaced-skip", "step-before"), ("independent", "step-before"), ("root-gate", "")} <= rows
    assert {("spaced-skip-unweighted", "none"), ("spaced-skip", "expected-cost")} <= rows


# What can be wrong ---------------------------------------------------------------------------------------------------

BROKEN = {
    "there is no such file": None,
    "has no function register(registry)": "register = 3",
    "cannot be run: SyntaxError": "def register(",
    "cannot be run: ModuleNotFoundError: No module named 'not_there'": "import not_there",
    "cannot be run: KeyError": "def register(registry): registry.rules.add({}['x'])",
    "the name 'skip' of a procedure is taken by a built-in one": """
from inference.registry import ProcedureEntry
from prob_moe import CapacitySkip
def register(registry):
    registry.add(ProcedureEntry("another", CapacitySkip), ProcedureEntry("skip", CapacitySkip))
""",
    "rule 'mine' must be of type RoutingRule, got CapacitySkip": """
from inference.registry import RuleEntry
from prob_moe import CapacitySkip
def register(registry):
    registry.add(RuleEntry("mine", CapacitySkip))
""",
    "the registry takes ProcedureEntry": "def register(registry): registry.add(3)",
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_plugin_is_refused_in_one_line_and_leaves_nothing(message: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    if BROKEN[message] is not None:
        file.write_text(str(BROKEN[message]))
    before = REGISTRY.state()
    line = refused("fit", "piecewise", "--plugin", str(file), "--out", str(tmp_path / "new"))
    assert f"plugin {file}" in line
    assert message in line
    assert REGISTRY.state() == before
    assert not (tmp_path / "new").exists()


def test_a_module_that_is_not_there() -> None:
    assert "plugin no_such_module: there is no such module" in refused("likelihood", "--plugin", "no_such_module")


@pytest.mark.parametrize("command", ["fit", "study", "gradients", "likelihood", "show"])
def test_every_command_with_names_takes_plugins(command: str) -> None:
    arguments = {"fit": ["piecewise"], "show": ["nowhere"]}.get(command, [])
    assert "has no function register" in refused(command, *arguments, "--plugin", "json")


def test_installed_plugins_are_there_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        name = "stranger"

    class Point:
        dist, value = Package, "my_distribution"

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point] if group == "prob_moe.plugins" else [])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    load_installed()
    assert REGISTRY.procedures["spaced-skip"].origin == "my_distribution"
    load("my_distribution")  # once more does nothing
    monkeypatch.setattr(Point, "value", "json")
    with pytest.raises(PluginError, match=r"plugin json has no function .* \(installed with stranger"):
        load_installed()
    assert "installed with stranger" in refused("likelihood")


def test_classes_of_a_file_can_be_pickled() -> None:
    load(DISTRIBUTION)
    make = REGISTRY.procedures["spaced-skip"].make
    assert pickle.loads(pickle.dumps(make)) is make
