"""Pieces of a line: the data are what they say, and the true process is its own best description."""

import torch

from models.pieces import Pieces, draw_pieces, pieces_mixture
from prob_moe.distributions import DependentRounding


def test_means_by_hand() -> None:
    """Two pieces: from 0 to 2 around the level 1, and flat at -1."""
    pieces = Pieces(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.0]))
    x = torch.tensor([0.0, 0.25, 0.375, 0.6, 1.0])
    torch.testing.assert_close(pieces.mean(x), torch.tensor([0.0, 1.0, 1.5, -1.0, -1.0]))


def test_data_lie_around_the_mean_and_in_every_piece() -> None:
    torch.manual_seed(0)
    pieces = draw_pieces((3,), 8)
    x, y = pieces.data(20_000)
    assert x.shape == (3, 20_000, 1)
    counts = torch.stack([(x * 8).long().eq(piece).sum((-2, -1)) for piece in range(8)])
    torch.testing.assert_close(counts / 20_000, torch.full((8, 3), 1 / 8), atol=0.0125, rtol=0)
    residual = y - pieces.mean(x.squeeze(-1))
    # Five standard errors of a mean and of a standard deviation.
    assert residual.mean(-1).abs().max() < 5 * 0.1 / 20_000**0.5
    assert (residual.std(-1) - 0.1).abs().max() < 5 * 0.1 / 40_000**0.5


def test_no_mixture_is_better_than_the_true_process() -> None:
    """The mixture whose experts are the pieces and whose router knows where they are has its likelihood."""
    torch.manual_seed(0)
    pieces = draw_pieces((), 2)
    data = pieces.data(500)
    mixture = pieces_mixture(DependentRounding, 2)
    slopes = 2 * pieces.rises
    with torch.no_grad():
        first, _, last = mixture.router  # type: ignore[misc]
        first.weight.zero_()[0, 0] = 1e6
        first.bias.fill_(-0.5e6)
        last.bias.zero_()
        last.weight.zero_()[0] = torch.tensor([-50.0, 50.0])
        middles = torch.tensor([0.25, 0.75])
        for name, parameter in mixture.experts.named_parameters():
            values = slopes if "weight" in name else pieces.levels - slopes * middles
            parameter.copy_(values.reshape(parameter.shape))
        found = mixture.marginal_log_likelihood(*data).mean()
    torch.testing.assert_close(-found, pieces.nll(data), atol=1e-4, rtol=0)
