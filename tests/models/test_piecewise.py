import pytest
import torch

from models.piecewise import (
    NOISE,
    piecewise_data,
    piecewise_mean,
    piecewise_mixture,
    piecewise_nll,
)
from prob_moe.distributions import IndependentRouting


def test_data_follow_the_stated_process() -> None:
    data = piecewise_data((200,), num_datapoints=500, break_at=0.3)
    x = data.x.squeeze(-1)
    residual = (data.y - piecewise_mean(x, 0.3)) / NOISE
    count = residual.numel()
    assert abs(residual.mean()) < 5 / count**0.5
    assert abs(residual.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert abs((x < 0.3).double().mean() - 0.3) < 5 * 0.5 / count**0.5


def test_a_mixture_with_the_true_lines_reaches_the_true_likelihood() -> None:
    data = piecewise_data((3,))
    mixture = piecewise_mixture(IndependentRouting, (3,))
    with torch.no_grad():
        mixture.experts.output.weight.copy_(torch.tensor([0.8, -2.0]).view(1, 2, 1, 1).expand(3, 2, 1, 1))
        mixture.experts.output.bias.copy_(torch.tensor([-0.2, 2.0]).view(1, 2, 1).expand(3, 2, 1))
        mixture.router.weight.copy_(torch.tensor([[-1e4, 1e4]]).expand(3, 1, 2))
        mixture.router.bias.copy_(torch.tensor([[5e3, -5e3]]).expand(3, 1, 2))
        nll = -mixture.marginal_log_likelihood(*data).mean(-1)
    torch.testing.assert_close(nll, piecewise_nll(data), rtol=1e-3, atol=1e-3)


def test_stacked_models_are_independent() -> None:
    data = piecewise_data((4,))
    mixture = piecewise_mixture(IndependentRouting, (4,))
    mixture.router_objective(*data)[1].backward()
    for parameter in mixture.parameters():
        others = [0, 2, 3]
        assert (parameter.grad[others] == 0).all()
        assert (parameter.grad[1] != 0).any()


def test_break_outside_the_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"break_at must lie inside \(0, 1\), got 1.0"):
        piecewise_data(break_at=1.0)
