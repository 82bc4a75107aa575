"""What is wrong with a table is told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from inference.routing_study.schema import COLUMNS, check, faults


def test_a_whole_table_has_no_fault(table: pd.DataFrame, tmp_path: Path) -> None:
    assert list(faults(table)) == []
    file = tmp_path / "routing.csv.gz"
    table.to_csv(file, index=False, float_format="%.6g")
    check(pd.read_csv(file))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("stage", "finals", r"column 'stage' .* must not hold 'finals'"),
        ("learning_rate", -0.1, r"column 'learning_rate' \(of Adam\) must not hold -0.1"),
        ("load_balancing", "much", "must not hold 'much'"),
        ("num_steps", 2.5, "must not hold 2.5"),
        ("seed", np.nan, "column 'seed' has 1 empty cells"),
        ("served", "3", "must not hold '3'"),
        ("robust", 11.0, "must not hold 11.0"),
        ("robust", np.nan, "rows without its measure, robust"),
        ("solved", 2.0, "must not hold 2.0"),
        ("chosen", "perhaps", "must not hold 'perhaps'"),
        ("measure", "nll", "is judged by nll and robust"),
    ],
)
def test_a_wrong_cell_is_named(table: pd.DataFrame, column: str, value: object, message: str) -> None:
    table[column] = table[column].astype(object)
    table.loc[0, column] = value
    with pytest.raises(ValueError, match=message):
        check(table)


def test_a_missing_column_is_named(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="missing: seconds"):
        check(table.drop(columns="seconds"))
    with pytest.raises(ValueError, match="missing: none, the order or others differ"):
        check(table[table.columns[::-1]])


def test_no_final_result_may_be_missing(table: pd.DataFrame) -> None:
    final = table[(table.stage == "final") & table.chosen & (table.arm == "switch")]
    with pytest.raises(ValueError, match="has 7 final results of switch, for 8 seeds"):
        check(table.drop(final.index[0]))
    with pytest.raises(ValueError, match="has 0 final results of switch, for 8 seeds"):
        check(table.drop(final.index))


def test_no_row_may_stand_twice(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="two rows for"):
        check(pd.concat([table, table.tail(1)]))


def test_no_column_is_left_out_or_named_twice() -> None:
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
