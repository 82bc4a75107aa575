"""Digits in four positions: the image shows the position, and the position says what the labels mean."""

import torch
from torch.nn.functional import one_hot

from models.rotated import NUM_TURNS, SIDE, quarter_turns, rotated_data, rotated_mixture
from prob_moe.distributions import DependentRounding


def test_every_image_stands_in_every_position_under_its_permutation() -> None:
    data = rotated_data(seed=1)
    assert data.permutations.sort(-1).values.equal(torch.arange(10).expand(NUM_TURNS, 10))
    x, y = data.train
    turns = quarter_turns()(x)
    assert turns.bincount().tolist() == [1197] * NUM_TURNS
    upright = torch.stack([image.view(SIDE, SIDE).rot90(-int(turn)).flatten() for image, turn in zip(x, turns)])
    _, image = upright.unique(dim=0, return_inverse=True)
    assert image.bincount().tolist() == [NUM_TURNS] * 1197
    digit = data.permutations.argsort(-1)[turns, y]
    for members in (image == 0, image == 500):
        assert sorted(turns[members].tolist()) == [0, 1, 2, 3]
        assert len(digit[members].unique()) == 1


def test_no_other_position_explains_the_labels() -> None:
    data = rotated_data(seed=2)
    known = quarter_turns()
    (x, y), (test_x, test_y) = data.train, data.test
    turns, test_turns = known(x), known(test_x)
    for shift in range(NUM_TURNS):
        # One least-squares classifier of the digits for each position, taught and asked as if that were shifted.
        share = 0.0
        for turn in range(NUM_TURNS):
            rows, test_rows = turns == turn, test_turns == turn
            meant = data.permutations[turn].argsort()
            said = data.permutations[(turn + shift) % NUM_TURNS].argsort()
            classifier = torch.linalg.lstsq(x[rows], one_hot(meant[y[rows]], 10).float(), driver="gelsd").solution
            right = (test_x[test_rows] @ classifier).argmax(-1) == said[test_y[test_rows]]
            share += right.float().mean().item() / NUM_TURNS
        assert share > 0.85 if shift == 0 else share < 0.4


def test_no_image_is_in_two_parts_and_no_seed_trains_on_test_images() -> None:
    first, other = rotated_data(seed=3), rotated_data(seed=4)
    parts = [{*map(tuple, part.x.tolist())} for part in first[:3]]
    assert [len(part) for part in parts] == [4 * 1197, 1200, 1200]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert parts[2] == {*map(tuple, other.test.x.tolist())}
    assert not first.permutations.equal(other.permutations)


def test_the_mixture_takes_a_stack_of_seeds_and_either_router() -> None:
    x = torch.stack([rotated_data(seed).train.x[:20] for seed in range(2)])
    sizes = []
    for hidden_router in (True, False):
        mixture = rotated_mixture(DependentRounding, (2,), hidden_router=hidden_router)
        assert mixture.predict(x, num_selected=2).logits.shape == (2, 20, 10)
        sizes.append(sum(parameter.numel() for parameter in mixture.router.parameters()))
    assert sizes[0] > sizes[1] == 2 * 65 * 4
