"""The table of the benchmarks: ratios, verdicts, and no ratio where results differ; the comparison of two runs."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import assignment, compare, growth, markdown
from tests.benchmarks.bench_cases import CASES
from tests.benchmarks.case import A_PART, SAME_RESULT, SAME_WORK
from tests.benchmarks.runs import load
from tests.benchmarks.table import in_words, rows, table, told_ratio


def record(what, side, least, *, goal="", kind=SAME_RESULT, deviation=None, axis=None, q1=None):
    info = {"what": what, "side": side, "goal": goal, "kind": kind, "work": "", "threads": 1, "tolerance": 1e-9}
    info |= {"axis": axis, "curve": "curve, of a test", "deviation": deviation}
    return {"extra_info": info, "stats": {"min": least, "q1": least if q1 is None else q1}}


def one(peer):
    return rows([record("x", "ours", 1.0), record("x", "ours", 0.5), peer])


@pytest.mark.parametrize(
    ("goal", "theirs", "ratio", "holds"),
    [
        (">= 15", 8.0, 16.0, True),
        (">= 15", 7.0, 14.0, False),
        ("<= 5", 0.1, 5.0, True),
        ("<= 5", 0.09, 0.5 / 0.09, False),
        ("", 1.0, 2.0, None),
    ],
)
def test_ratio_of_the_least_times(goal, theirs, ratio, holds):
    (row,) = one(record("x", "peer", theirs, goal=goal, deviation=1e-12))
    assert row.ratio == pytest.approx(ratio)
    assert row.holds is holds


def test_no_ratio_where_results_differ_or_are_not_compared():
    for deviation in (1e-3, float("nan"), None):
        (row,) = one(record("x", "peer", 9.0, goal=">= 2", deviation=deviation))
        assert row.ratio is None
        assert row.holds is None
    (row,) = one(record("x", "peer", 9.0, goal=">= 2", kind=SAME_WORK))
    assert row.holds


def test_what_has_the_peer_as_a_part_is_told_in_its_times():
    (row,) = one(record("x", "peer", 0.1, kind=A_PART))
    assert told_ratio(row) == "5.00×"


def test_no_two_cases_have_one_name():
    names = [case.what for case in CASES]
    assert len(set(names)) == len(names)


def test_every_peer_has_a_row_and_who_has_none_has_one():
    found = rows([record("x", "ours", 1.0), record("x", "a", 2.0), record("x", "b", 3.0), record("y", "ours", 1.0)])
    assert [(row.what, row.peer) for row in found] == [("x", "a"), ("x", "b"), ("y", "")]
    assert table(found, "a processor").row_count == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs"), (1e-8, "0.01 µs")]
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def written(path: Path, *records) -> Path:
    path.write_text(json.dumps({"benchmarks": records, "machine_info": {"cpu": {"brand_raw": "a processor"}}}))
    return path


def test_markdown_has_a_line_for_every_row(tmp_path, capsys):
    records = record("x", "ours", 1e-3), record("x", "peer", 2e-3, goal=">= 3", deviation=0.0), record("y", "ours", 2.0)
    markdown.main(str(written(tmp_path / "run.json", *records)))
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == "| x | 1 | 1 ms | peer | 2 ms | 2.00 x | ≥ 3, missed |"
    assert printed[3] == "| y | 1 | 2 s |  |  |  |  |"
    assert printed[-1] == "a processor: 0 goals hold, 1 are missed."


def test_comparison_tells_slower_from_noise(tmp_path, capsys):
    steady, slower = record("x", "ours", 1.0), record("x", "ours", 1.2)
    noisy = record("x", "ours", 1.2, q1=1.5)
    before = written(tmp_path / "a.json", steady)
    assert compare.main(str(before), str(written(tmp_path / "b.json", slower))) == 1
    assert "slower" in capsys.readouterr().out
    assert compare.main(str(before), str(written(tmp_path / "c.json", noisy))) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert compare.main(str(before), str(written(tmp_path / "d.json", record("x", "ours", 0.5)))) == 0
    assert "faster" in capsys.readouterr().out


def test_files_that_are_no_runs_are_named(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for path in (broken, tmp_path / "none.json"):
        with pytest.raises(SystemExit, match=f"{path.name} is no run of make bench"):
            load(path)


def test_growth_is_drawn(tmp_path, capsys):
    run = written(
        tmp_path / "a.json",
        *(record(f"{n}", "ours", 1e-6 * n, axis=("n", n)) for n in (64, 16, 256)),
        *(record(f"{n}", "peer", 1e-4 * n, axis=("n", n)) for n in (64, 16)),
    )
    found = growth.curves(load(run)[0])
    assert [size for size, _ in found["n", "curve, of a test"]["ours"]] == [16, 64, 256]
    growth.main(str(run), str(tmp_path / "pictures"))
    assert Path(capsys.readouterr().out.strip()).stat().st_size > 1000


def test_sides_of_assignment_agree():
    """The check that stands before a ratio, and that a wrong optimum fails it."""
    scores = assignment.gumbel(128, 8)
    mine = assignment.ours(scores, 16)
    for theirs in (assignment.by_pot(scores), assignment.by_scipy(scores, 16)):
        assert assignment.off(mine, theirs) < 1e-9
    assert assignment.off(mine, float(scores[:, 0].sum())) > 1e-3
