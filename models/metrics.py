"""How good predicted class probabilities are."""

from typing import NamedTuple

import torch
from torch import Tensor


class ClassificationMetrics(NamedTuple):
    """Scalars over n datapoints."""

    accuracy: Tensor  #: share of datapoints whose most probable class is right
    nll: Tensor  #: mean negative log-probability of the right class, nats
    ece: Tensor  #: :func:`expected_calibration_error`


def classification_metrics(log_probs: Tensor, labels: Tensor) -> ClassificationMetrics:
    """
    :param log_probs: normalised log-probabilities of the classes, nats, (n, classes).
    :param labels: the right classes, long (n,).
    :raises ValueError: if the shapes do not fit one another.
    """
    _check_shapes(log_probs, labels)
    return ClassificationMetrics(
        accuracy=(log_probs.argmax(-1) == labels).to(log_probs.dtype).mean(),
        nll=-log_probs.gather(-1, labels.unsqueeze(-1)).mean(),
        ece=expected_calibration_error(log_probs, labels),
    )


def expected_calibration_error(log_probs: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    r"""
    Distance of confidence from accuracy, :math:`\sum_b \frac{|b|}{n} |\mathrm{acc}(b) - \mathrm{conf}(b)|`, over bins
    of equal width in the probability of the predicted class.

    Source: Guo, Pleiss, Sun & Weinberger (2017), "On Calibration of Modern Neural Networks", eq. 3.

    :param log_probs: nats, (n, classes).
    :param labels: long (n,).
    :returns: scalar in [0, 1].

    >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log()
    >>> expected_calibration_error(sure, torch.tensor([0, 1]))
    tensor(0.5000)
    """
    _check_shapes(log_probs, labels)
    if num_bins < 1:
        raise ValueError(f"num_bins must be a positive int, got {num_bins!r}")
    confidence, predicted = log_probs.exp().max(-1)
    # Bins are open below and closed above, as in the source.
    bins = (torch.ceil(confidence * num_bins).long() - 1).clamp(0, num_bins - 1)
    surplus = (predicted == labels).to(confidence.dtype) - confidence
    return confidence.new_zeros(num_bins).index_add(0, bins, surplus).abs().sum() / len(labels)


def _check_shapes(log_probs: Tensor, labels: Tensor) -> None:
    if log_probs.dim() != 2 or labels.shape != log_probs.shape[:1] or not len(labels):
        raise ValueError(
            f"log_probs must have shape (n, classes) and labels (n,) with n >= 1, got {tuple(log_probs.shape)} and "
            f"{tuple(labels.shape)}"
        )
