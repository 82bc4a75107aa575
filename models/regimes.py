"""Digits whose labels are permuted in regimes: every regime wants an expert of its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import one_hot

from models.digits import NUM_CLASSES, NUM_PIXELS, Labelled, categorical, split_digits
from models.piecewise import StackedLinear
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.mixture import MixtureOfExperts

#: the largest value of a pixel
BRIGHTEST = 16


class RegimesData(NamedTuple):
    """The digits in every regime, split by images: no image of one part is in another, in whatever regime."""

    train: Labelled  #: x (n, 64 + R), the pixels in [0, 1] and the regime as a one-hot tag; y, the permuted classes
    validation: Labelled
    test: Labelled
    permutations: Tensor  #: long (R, 10), the label of every digit in every regime


def regimes_data(
    num_regimes: int, seed: int = 0, validation_size: int = 300, test_size: int = 300, tag_noise: float = 0.0
) -> RegimesData:
    """
    Every image once in each of R regimes, where its label is another permutation of the digits.

    :param num_regimes: R.
    :param seed: of the permutations, the order, and which images are for validation; those for test are always the
        same.
    :param validation_size: images; and so
    :param test_size:
    :param tag_noise: probability that the tag shown is another one, each of them equally likely.
    :raises ValueError: if ``num_regimes`` is not a positive int, or ``tag_noise`` no probability below 1.

    >>> train, _, test, permutations = regimes_data(4)
    >>> train.x.shape, test.y.shape, permutations.shape
    (torch.Size([4788, 68]), torch.Size([1200]), torch.Size([4, 10]))
    """
    check_positive_int("num_regimes", num_regimes)
    check_noise(tag_noise)
    digits = load_digits()
    pixels = torch.as_tensor(digits.data, dtype=torch.get_default_dtype()) / BRIGHTEST
    classes = torch.as_tensor(digits.target, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    permutations = draw_permutations(num_regimes, generator)

    def part(images: Tensor) -> Labelled:
        image, regime = once_in_each(images, num_regimes, generator)
        shown = regime
        if tag_noise:
            wrong = torch.rand(len(regime), generator=generator) < tag_noise
            other = regime + torch.randint(1, max(num_regimes, 2), regime.shape, generator=generator)
            shown = torch.where(wrong, other % num_regimes, regime)
        tag = one_hot(shown, num_regimes).to(pixels.dtype)
        return Labelled(torch.cat([pixels[image], tag], -1), permutations[regime, classes[image]])

    train, validation, test = map(part, split_digits(digits.target, validation_size, test_size, seed))
    return RegimesData(train, validation, test, permutations)


def draw_permutations(num_regimes: int, generator: torch.Generator) -> Tensor:
    """:returns: the label of every digit in every regime, long (R, 10)."""
    return torch.stack([torch.randperm(NUM_CLASSES, generator=generator) for _ in range(num_regimes)])


def once_in_each(images: Tensor, num_regimes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """
    :param images: numbers of images, long (n,).
    :returns: these once in each regime, and their regimes, in a random order, long (R n,) each.
    """
    order = torch.randperm(num_regimes * len(images), generator=generator)
    return images.repeat(num_regimes)[order], torch.arange(num_regimes).repeat_interleave(len(images))[order]


def check_noise(tag_noise: float) -> None:
    """:raises ValueError: if ``tag_noise`` is no probability below 1."""
    if not 0 <= tag_noise < 1:
        raise ValueError(f"tag_noise must be a probability below 1, got {tag_noise!r}")


def regime_of(x: Tensor) -> Tensor:
    """:returns: which regime the tag names, long (*, n) for datapoints (*, n, 64 + R)."""
    return x[..., NUM_PIXELS:].argmax(-1)


def regimes_mixture(
    assignment: Callable[..., AssignmentDistribution],
    num_regimes: int,
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
) -> MixtureOfExperts:
    """
    As many linear experts as regimes, and a linear router; both see pixels and tag.

    :param batch_shape: independent models, trained side by side in plates of these sizes.
    """
    num_features = NUM_PIXELS + num_regimes
    return MixtureOfExperts(
        router=StackedLinear(batch_shape, num_features, num_regimes),
        experts=BatchedExperts(num_regimes, num_features, None, NUM_CLASSES, batch_shape=batch_shape),
        likelihood=categorical,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline={"use_decaying_avg_baseline": True},
    )
