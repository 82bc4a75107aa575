"""Claims from tables whose answer is known."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from inference.claims.catalogue import CLAIMS, sparse_alternatives
from inference.claims.page import BEGIN, END, blocks, rewritten
from inference.claims.verdicts import DOES_NOT, HOLDS, UNDECIDED, Verdict, verdicts
from inference.cli import app
from inference.study.settings import PiecesRun
from tests.inference.routing_study.stand_in import COSTS, task

Study = Callable[..., pd.DataFrame]


def by_name(table: pd.DataFrame) -> dict[str, Verdict]:
    return {each.claim.name: each for each in verdicts(table)}


def test_known_answers(table: pd.DataFrame) -> None:
    found = by_name(table)
    assert {name: each.verdict for name, each in found.items() if each.tasks} == {
        "skip-weights": DOES_NOT,  # 3.0 with weights, 2.5 without
        "biased-alternatives": DOES_NOT,  # skip is level with Switch, Gumbel-Matching behind by 0.3
        "skipping": HOLDS,
        "balance": HOLDS,  # a weight of 0 costs 0.2
        "switch-suffices": DOES_NOT,
        "gates-suffice": DOES_NOT,
        "bound": HOLDS,
        "bound-at-every-rate": HOLDS,
        "bound-at-equal-compute": HOLDS,
        "marginals-under-the-bound": HOLDS,
        "capacity": UNDECIDED,
    }
    # Arms that did not run make no claim hold.
    assert found["matching-weights"].num_comparisons == 0
    assert found["matching-weights"].verdict == UNDECIDED


def test_the_numbers_are_paired_differences_with_student_intervals(table: pd.DataFrame) -> None:
    final = table[(table.stage == "final") & table.chosen].pivot(index="seed", columns="arm", values="robust")
    values = final["skip-unweighted"] - final["skip"]
    (on_task,) = by_name(table)["skip-weights"].tasks
    assert on_task.worst.mean == pytest.approx(values.mean())
    peer = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert on_task.interval == pytest.approx((peer.low, peer.high))
    assert on_task.worst.mean == pytest.approx(-0.5)


def test_levels_are_joint_over_tasks_and_comparisons(study: Study) -> None:
    further = task(num_experts=8, make=partial(PiecesRun, num_pieces=8))
    found = by_name(study(task(), further))["bound"]
    alternatives = 5  # skip and its twin, Gumbel-Matching, Switch, top-2 gates
    assert found.num_comparisons == 2 * alternatives
    assert {each.level for each in found.tasks} == {1 - 0.05 / 2}
    assert {each.reverse_level for each in found.tasks} == {1 - 0.05 / (2 * alternatives)}


def test_one_task_against_it_is_enough(table: pd.DataFrame) -> None:
    """And two of three that are for it, if the third is undecided."""
    other = table.assign(task="another")
    third = table.assign(task="a third")
    ours = (other.arm == "dependent-rounding-mixture-bound") & (other.stage == "final")
    other.loc[ours, "robust"] += 5
    found = by_name(pd.concat([table, other]))["bound"]
    assert (found.verdict, found.count(HOLDS), found.count(DOES_NOT)) == (DOES_NOT, 1, 1)
    third.loc[ours, "robust"] += 1.5  # level with skip without weights
    found = by_name(pd.concat([table, table.assign(task="another"), third]))["bound"]
    assert (found.verdict, found.count(HOLDS), found.count(UNDECIDED)) == (HOLDS, 2, 1)


def test_tasks_that_do_not_depend_on_routing_take_no_part(study: Study) -> None:
    table = study(task(), costs=COSTS | {"frozen-router": 0.5})
    assert all(each.num_comparisons == 0 for each in verdicts(table))


def test_with_two_experts_nothing_is_said_of_the_bound(study: Study) -> None:
    found = by_name(study(task(num_experts=2, make=partial(PiecesRun, num_pieces=2))))
    assert not found["bound"].tasks
    assert not found["switch-suffices"].tasks
    assert found["skip-weights"].tasks


def test_alternatives_evaluate_few_experts_and_learn_to_route(table: pd.DataFrame) -> None:
    expected = ["skip", "gumbel-matching", "skip-unweighted", "switch", "top-2-gates"]
    assert sparse_alternatives(table) == expected
    stranger = table[table.arm == "switch"].assign(arm="of-a-plugin-that-is-not-loaded")
    assert sparse_alternatives(pd.concat([table, stranger])) == [*expected, "of-a-plugin-that-is-not-loaded"]


def test_names_are_one_each() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def write(table: pd.DataFrame, folder: Path) -> Path:
    file = folder / "routing.csv"
    table.to_csv(file, index=False, float_format="%.6g")
    return file


def test_the_command_prints_every_claim(table: pd.DataFrame, tmp_path: Path) -> None:
    file = write(table, tmp_path)
    result = CliRunner().invoke(app, ["claims", str(file)])
    assert result.exit_code == 0, result.output
    assert all(claim.sentence in result.output for claim in CLAIMS)
    rows = json.loads(CliRunner().invoke(app, ["claims", str(file), "--json"]).stdout)
    skip = next(row for row in rows if row["claim"] == "skip-weights")
    assert (skip["verdict"], skip["behind"], skip["seeds"]) == ("does not", 1, 8)
    number = f"{skip['difference']:.3f} nats [{skip['low']:.3f}, {skip['high']:.3f}]"
    assert number in result.output


def test_a_page_gets_the_tables_of_the_command(table: pd.DataFrame, tmp_path: Path) -> None:
    file, page = write(table, tmp_path), tmp_path / "claims.md"
    names = ("gates", "claims", "claim bound", "arms 4 pieces of a line", "compute 4 pieces of a line")
    page.write_text(
        "# Title\n" + "\n".join(f"text\n{BEGIN.format(name)}\nearlier\n{END}" for name in names) + "\nend\n"
    )
    result = CliRunner().invoke(app, ["claims", str(file), "--page", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "earlier" not in text
    assert text.startswith("# Title\ntext\n")
    assert text.endswith(f"{END}\nend\n")
    assert rewritten(text, blocks(pd.read_csv(file))) == text
    assert rewritten(text.replace("| holds |", "| does not |"), blocks(pd.read_csv(file))) == text


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("no block", "has no block"),
        (f"{BEGIN.format('claim bond')}\n{END}", "has a block 'claim bond', which must be one of gates, claims"),
    ],
)
def test_a_page_that_asks_for_what_there_is_not_is_refused(
    table: pd.DataFrame, tmp_path: Path, page: str, message: str
) -> None:
    (tmp_path / "page.md").write_text(page)
    command = ["claims", str(write(table, tmp_path)), "--page", str(tmp_path / "page.md")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert (tmp_path / "page.md").read_text() == page


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "", "\x00"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.csv").write_text(content)
    result = CliRunner().invoke(app, ["claims", str(tmp_path / "other.csv")])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
