"""Digits in four regimes that only the image shows: each is turned by a quarter more, and has labels of its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.digits import NUM_CLASSES, NUM_PIXELS, Labelled, categorical, split_digits
from models.pieces import stacked_network
from models.piecewise import StackedLinear
from models.regimes import BRIGHTEST, draw_permutations, once_in_each
from models.remembered import Remembered
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

NUM_TURNS = 4
SIDE = 8  #: pixels
#: images of the validation part, and as many of the test part
HELD_OUT = 300


class RotatedData(NamedTuple):
    """The digits in every position, split by images: no image of one part is in another, however it is turned."""

    train: Labelled  #: x (n, 64), pixels in [0, 1]; y, the permuted classes
    validation: Labelled
    test: Labelled
    permutations: Tensor  #: long (4, 10), the label of every digit in every position


def rotated_data(seed: int = 0) -> RotatedData:
    """
    Every image once in each of four positions, turned by 0, 90, 180 and 270 degrees; in each the label is another
    permutation of the digits.

    :param seed: of the permutations, the order, and which images are for validation; those for test are always the
        same.

    >>> train, _, test, permutations = rotated_data()
    >>> train.x.shape, test.y.shape, permutations.shape
    (torch.Size([4788, 64]), torch.Size([1200]), torch.Size([4, 10]))
    """
    digits = load_digits()
    turned = turned_digits()
    classes = torch.as_tensor(digits.target, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    permutations = draw_permutations(NUM_TURNS, generator)

    def part(images: Tensor) -> Labelled:
        image, turns = once_in_each(images, NUM_TURNS, generator)
        return Labelled(turned[turns, image], permutations[turns, classes[image]])

    train, validation, test = map(part, split_digits(digits.target, HELD_OUT, HELD_OUT, seed))
    return RotatedData(train, validation, test, permutations)


def turned_digits() -> Tensor:
    """:returns: all images in every position, (4, n, 64), pixels in [0, 1]."""
    images = torch.as_tensor(load_digits().images, dtype=torch.get_default_dtype()) / BRIGHTEST
    return torch.stack([images.rot90(turns, (-2, -1)).flatten(-2) for turns in range(NUM_TURNS)])


def quarter_turns() -> Remembered:
    """:returns: by how many quarter turns an image of the digits is turned, long (*, n) for x of (*, n, 64)."""
    turned = turned_digits()
    return Remembered(turned.flatten(0, 1), torch.arange(NUM_TURNS).repeat_interleave(turned.shape[1]))


def rotated_mixture(
    assignment: Callable[..., AssignmentDistribution],
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
    hidden_router: bool = True,
) -> MixtureOfExperts:
    """
    A linear expert for each position.

    :param batch_shape: independent models, trained side by side in plates of these sizes.
    :param hidden_router: a router with one hidden layer of 32 units, or a linear one.
    """
    make_router = stacked_network if hidden_router else StackedLinear
    return MixtureOfExperts(
        router=make_router(batch_shape, NUM_PIXELS, NUM_TURNS),
        experts=BatchedExperts(NUM_TURNS, NUM_PIXELS, None, NUM_CLASSES, batch_shape=batch_shape),
        likelihood=categorical,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline={"use_decaying_avg_baseline": True},
    )
