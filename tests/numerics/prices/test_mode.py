import pytest
import torch

from prob_moe.numerics.prices.density import price_structure
from prob_moe.numerics.prices.derivatives import coordinate_derivatives, density_and_gradient, logit_score
from prob_moe.numerics.prices.mode import find_mode
from prob_moe.numerics.prices.problem import PriceProblem
from prob_moe.numerics.prices.start import central_prices
from prob_moe.numerics.prices.truncated_gaussian import TruncatedGaussian


def problem(n: int, k: int, capacity: int, scale: float = 1.0) -> PriceProblem:
    logits = scale * torch.randn(1, n, k, generator=torch.Generator().manual_seed(n * k), dtype=torch.float64)
    assignment = torch.arange(n).unsqueeze(0) % k
    return PriceProblem.build(logits, assignment, price_structure(logits, assignment, capacity))


@pytest.mark.parametrize(("n", "k", "capacity"), [(6, 3, 2), (5, 4, 2), (4, 4, 1), (7, 3, 3)])
def test_derivatives_equal_automatic_ones(n, k, capacity):
    case = problem(n, k, capacity)
    point = torch.linspace(-1, 1, k, dtype=torch.float64) * case.free[0]

    def density(coordinates):
        return case.log_density(coordinates[None, None]).squeeze()

    gradient, hessian = coordinate_derivatives(case, point[None])
    torch.testing.assert_close(gradient[0], torch.autograd.functional.jacobian(density, point))
    value, quicker = density_and_gradient(case, point[None, None])
    torch.testing.assert_close((value.squeeze(), quicker[0, 0]), (density(point), gradient[0]))
    expected = torch.autograd.functional.hessian(density, point) - torch.diag((~case.free[0]).double())
    torch.testing.assert_close(hessian[0], expected)
    logits = case.logits.clone().requires_grad_()
    prices = case.prices(point[None, None])
    (score,) = torch.autograd.grad(case._replace(logits=logits).log_joint(prices).sum(), logits)
    torch.testing.assert_close(logit_score(case, prices)[0], score)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
@pytest.mark.parametrize(("n", "k", "capacity"), [(12, 4, 3), (11, 4, 3), (6, 6, 1)])
def test_mode_is_stationary(n, k, capacity, scale):
    case = problem(n, k, capacity, scale)
    mode, covariance = find_mode(case, central_prices(case).unsqueeze(0))
    gradient, _ = coordinate_derivatives(case, mode)
    assert gradient.abs().max() < 0.1
    assert torch.linalg.eigvalsh(covariance).min() > 0


def test_coordinates_invert_prices():
    case = problem(7, 3, 3)
    case = case._replace(free=torch.ones(1, 3, dtype=torch.bool), bounded=torch.ones(1, 3, dtype=torch.bool))
    points = torch.linspace(-8, 60, 400, dtype=torch.float64)[:, None, None].expand(-1, 1, 3)
    torch.testing.assert_close(case.coordinates(case.prices(points)), points, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mean", [0.5, -1.0, -12.0])
def test_truncated_gaussian_has_the_density_that_it_draws_from(mean):
    factor = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]], dtype=torch.float64)
    both = torch.ones(1, 2, dtype=torch.bool)
    gaussian = TruncatedGaussian(torch.full((1, 2), mean, dtype=torch.float64), factor, both, both)
    scale = 1.0 if mean > -5 else 0.25
    axis = (torch.arange(500, dtype=torch.float64) + 0.5) / 500 * 8 * scale  # midpoints of cells
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 2)
    mass = gaussian.log_prob(grid).exp() * (axis[1] - axis[0]).square()
    points = gaussian.draw(torch.rand(100_000, 2, dtype=torch.float64))
    assert (points >= 0).all()
    z = (points[:, 0].mean(0) - (mass * grid[:, 0]).sum(0)) / (points[:, 0].std(0) / 100_000**0.5)
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-3)
    assert z.abs().max() < 5
