"""Handwritten digits, classified by a mixture of small networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from models.stacked import StackedMixture
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.mixture import MixtureOfExperts

NUM_PIXELS = 64
NUM_CLASSES = 10
SPLIT_SEED = 0
NUM_EXPERTS, HIDDEN = 4, 64  #: by default, and units of an expert


class Labelled(NamedTuple):
    """Datapoints with their classes."""

    x: Tensor  #: (n, d)
    y: Tensor  #: long (n,)


class DigitsData(NamedTuple):
    """The 1,797 digits of scikit-learn (8 x 8 pixels), split."""

    train: Labelled
    validation: Labelled
    test: Labelled


def digits_data(validation_size: int = 300, test_size: int = 300) -> DigitsData:
    """
    The digits in torch's default dtype; the classes have equal shares in all parts, and the split is always the same.

    Pixels are standardised by mean and standard deviation of the training part; those that never change are 0.

    >>> [len(part.y) for part in digits_data()]
    [1197, 300, 300]
    """
    digits = load_digits()
    train, validation, test = split_digits(digits.target, validation_size, test_size)
    x = torch.as_tensor(digits.data, dtype=torch.get_default_dtype())
    y = torch.as_tensor(digits.target, dtype=torch.long)
    mean, deviation = x[train].mean(0), x[train].std(0)
    x = (x - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return DigitsData(*(Labelled(x[part], y[part]) for part in (train, validation, test)))


def split_digits(
    target: Any, validation_size: int, test_size: int, seed: int = SPLIT_SEED
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The test part is always the same.

    :param target: the classes, an array (n,).
    :param seed: of the rest's split into training and validation part.
    :returns: the datapoints of the training, validation and test part, long, with equal shares of the classes.
    """

    def split(index: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
        kept, left = train_test_split(index.numpy(), test_size=size, stratify=target[index], random_state=seed)
        return torch.as_tensor(kept), torch.as_tensor(left)

    rest, test = split(torch.arange(len(target)), test_size, SPLIT_SEED)
    return *split(rest, validation_size, seed), test


class CostBaseline(nn.Module):
    """A network that predicts the cost of every datapoint: (*, n, d) -> (*, n)."""

    def __init__(self, in_features: int, hidden_features: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, hidden_features), nn.ReLU(), nn.Linear(hidden_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def categorical(out: Tensor) -> TorchDistribution:
    """The likelihood: expert outputs are the logits of the classes."""
    return dist.Categorical(logits=out)


def digits_mixture(
    assignment: Callable[..., AssignmentDistribution],
    *,
    num_experts: int = NUM_EXPERTS,
    hidden_features: int = HIDDEN,
    num_layers: int = 1,
    capacity_factor: float = 1.25,
    load_balancing: float = 0.0,
    baseline: dict[str, Any] | None = None,
    neural_baseline: bool = False,
) -> MixtureOfExperts | StackedMixture:
    """
    A linear router and experts with one hidden layer. With two layers, residual experts come first.

    :param assignment: the assignment distribution, of both layers.
    :param num_layers: 1 or 2.
    :param load_balancing: weight of the load-balancing loss, in the last layer.
    :param baseline: Pyro's ``infer["baseline"]`` options of every assignment site; or
    :param neural_baseline: a network that predicts every datapoint's cost from the input of the layer.
    :raises ValueError: on another number of layers, or two kinds of baseline.
    """
    check_positive_int("num_experts", num_experts)
    if num_layers not in (1, 2):
        raise ValueError(f"num_layers must be 1 or 2, got {num_layers!r}")
    if neural_baseline and baseline is not None:
        raise ValueError(f"give baseline or neural_baseline, not both (got {baseline} and {neural_baseline})")

    def layer_baseline() -> nn.Module | dict[str, Any] | None:
        return CostBaseline(NUM_PIXELS) if neural_baseline else baseline

    classifier = MixtureOfExperts(
        router=nn.Linear(NUM_PIXELS, num_experts),
        experts=BatchedExperts(num_experts, NUM_PIXELS, hidden_features, NUM_CLASSES),
        likelihood=categorical,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline=layer_baseline(),
        load_balancing=load_balancing,
    )
    if num_layers == 1:
        return classifier
    return StackedMixture(
        router=nn.Linear(NUM_PIXELS, num_experts),
        experts=BatchedExperts(num_experts, NUM_PIXELS, hidden_features, NUM_PIXELS, residual=True),
        second=classifier,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline=layer_baseline(),
    )
