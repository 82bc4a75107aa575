"""Digits in regimes: every image in every regime, under that regime's permutation."""

import pytest
import torch
from torch import Tensor

from models.digits import NUM_PIXELS, Labelled
from models.regimes import regime_of, regimes_data, regimes_mixture
from prob_moe.distributions import DependentRounding


def test_every_image_stands_in_every_regime_under_its_permutation() -> None:
    data = regimes_data(4, seed=1)
    assert data.permutations.sort(-1).values.equal(torch.arange(10).expand(4, 10))
    x, y = data.train
    regime = regime_of(x)
    assert regime.bincount().tolist() == [1197] * 4
    assert x[:, NUM_PIXELS:].sum(-1).equal(torch.ones(len(y)))
    # The digit that a label means in its regime is the same for an image wherever it stands.
    digit = data.permutations.argsort(-1)[regime, y]
    _, image = x[:, :NUM_PIXELS].unique(dim=0, return_inverse=True)
    for members in (image == 0, image == 500):
        assert sorted(regime[members].tolist()) == [0, 1, 2, 3]
        assert len(digit[members].unique()) == 1
    assert len(y[image == 0].unique()) > 1


def test_a_tag_is_wrong_as_often_as_is_said() -> None:
    tag_noise = 0.2
    clean, noisy = (regimes_data(4, seed=7, tag_noise=noise) for noise in (0.0, tag_noise))
    assert noisy.permutations.equal(clean.permutations)
    meant = clean.permutations.argsort(-1)
    x, y = clean.train
    digits = dict(zip(map(tuple, x[:, :NUM_PIXELS].tolist()), meant[regime_of(x), y].tolist()))
    x, y = noisy.train
    digit = torch.tensor([digits[tuple(image)] for image in x[:, :NUM_PIXELS].tolist()])
    # A wrong tag is right for digits that both permutations send to the same label.
    same = (clean.permutations.unsqueeze(1) == clean.permutations).float().mean(-1)
    by_chance = (same.sum() - 4) / 12
    share = (meant[regime_of(x), y] == digit).float().mean()
    assert abs(share - (1 - tag_noise * (1 - by_chance))) < 5 * (tag_noise * (1 - tag_noise) / len(y)) ** 0.5
    assert share < 1 - tag_noise / 2


@pytest.mark.parametrize("tag_noise", [-0.1, 1.0])
def test_tag_noise_is_a_probability(tag_noise: float) -> None:
    with pytest.raises(ValueError, match=f"tag_noise must be a probability below 1, got {tag_noise}"):
        regimes_data(4, tag_noise=tag_noise)


def test_no_image_is_in_two_parts() -> None:
    data = regimes_data(2)
    images = [set(map(tuple, part.x[:, :NUM_PIXELS].tolist())) for part in data[:3]]
    assert [len(part) for part in images] == [1197, 300, 300]
    assert not images[0] & images[2]
    assert not images[0] & images[1]
    assert not images[1] & images[2]


def test_a_seed_decides_permutations_and_validation_images_but_no_test_images() -> None:
    first, again, other = regimes_data(3, seed=5), regimes_data(3, seed=5), regimes_data(3, seed=6)
    assert first.train.x.equal(again.train.x)
    assert not first.permutations.equal(other.permutations)

    def images(part: Labelled) -> Tensor:
        return part.x[:, :NUM_PIXELS].unique(dim=0)

    assert not images(first.validation).equal(images(other.validation))
    assert images(first.test).equal(images(other.test))


def test_the_mixture_takes_a_stack_of_seeds() -> None:
    mixture = regimes_mixture(DependentRounding, 3, (2,))
    x = torch.stack([regimes_data(3, seed).train.x[:20] for seed in range(2)])
    assert mixture.predict(x, num_selected=2).logits.shape == (2, 20, 10)


@pytest.mark.parametrize("num_regimes", [0, -1, 2.0, True])
def test_the_number_of_regimes_is_a_positive_int(num_regimes: object) -> None:
    with pytest.raises(ValueError, match=f"num_regimes must be a positive int, but is {num_regimes!r}"):
        regimes_data(num_regimes)
