import math

import pytest
import torch

from models.metrics import classification_metrics, expected_calibration_error


def test_against_loops() -> None:
    log_probs = torch.randn(200, 5, dtype=torch.float64).mul(2).log_softmax(-1)
    labels = torch.randint(5, (200,))
    metrics = classification_metrics(log_probs, labels)
    rows = list(zip(log_probs.exp().tolist(), labels.tolist()))
    assert float(metrics.accuracy) == pytest.approx(sum(p.index(max(p)) == y for p, y in rows) / 200)
    assert float(metrics.nll) == pytest.approx(sum(-math.log(p[y]) for p, y in rows) / 200)
    error = 0.0
    for b in range(15):
        members = [(p, y) for p, y in rows if b / 15 < max(p) <= (b + 1) / 15]
        if members:
            accuracy = sum(p.index(max(p)) == y for p, y in members) / len(members)
            confidence = sum(max(p) for p, _ in members) / len(members)
            error += len(members) / 200 * abs(accuracy - confidence)
    assert float(metrics.ece) == pytest.approx(error)


def test_calibrated_predictions_have_an_error_that_vanishes() -> None:
    """Labels drawn from the predictions themselves: each bin's surplus is a sum of martingale differences."""
    n = 100_000
    probabilities = torch.rand(n, 3, dtype=torch.float64).softmax(-1)
    labels = torch.multinomial(probabilities, 1).squeeze(-1)
    # At most num_bins^(1/2) times half of n^(-1/2), by Cauchy-Schwarz, as its root mean square.
    assert expected_calibration_error(probabilities.log(), labels) < 5 * 0.5 * (15 / n) ** 0.5
    assert expected_calibration_error((4 * probabilities.log()).log_softmax(-1), labels) > 0.1


@pytest.mark.parametrize(("log_probs", "labels"), [((4, 3), (5,)), ((4,), (4,)), ((0, 3), (0,))])
def test_bad_shapes(log_probs: tuple, labels: tuple) -> None:
    with pytest.raises(ValueError, match=r"log_probs must have shape \(n, classes\)"):
        classification_metrics(torch.zeros(log_probs), torch.zeros(labels, dtype=torch.long))


def test_bad_number_of_bins() -> None:
    with pytest.raises(ValueError, match="num_bins must be a positive int, got 0"):
        expected_calibration_error(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), num_bins=0)
