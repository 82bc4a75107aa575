"""Digits: the split, and unbiased gradients of the model, one layer and two."""

from functools import partial

import pytest
import torch
from torch import Tensor

from models.digits import CostBaseline, digits_data, digits_mixture
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceRouting_ELBO
from tests.estimators.replicas import standard_errors_off

tiny = partial(digits_mixture, num_experts=2, hidden_features=2, capacity_factor=1.0)


def no_guide(x: Tensor, y: Tensor) -> None:
    pass


def subset(n: int = 5) -> tuple[Tensor, Tensor]:
    part = digits_data().test
    return part.x[:n].double(), part.y[:n]


def test_split_is_fixed_stratified_and_standardised() -> None:
    data = digits_data()
    torch.manual_seed(1)
    assert torch.equal(data.test.x, digits_data().test.x)
    everything = torch.cat([part.x for part in data])
    assert len(everything.unique(dim=0)) == len(digits_data(10, 10).train.x) + 20 == 1797
    shares = torch.stack([part.y.bincount(minlength=10) / len(part.y) for part in data])
    assert (shares - shares[0]).abs().max() < 1 / 300
    mean, deviation = data.train.x.mean(0), data.train.x.std(0)
    assert mean.abs().max() < 1e-5
    constant = (data.train.x == 0).all(0)
    torch.testing.assert_close(deviation, (~constant).float(), rtol=1e-4, atol=1e-4)
    assert constant.any()


def gradients_off(model: torch.nn.Module, x: Tensor, y: Tensor, elbo: TraceRouting_ELBO, num_draws: int = 300) -> float:
    """The largest distance of the mean gradient from the exact one along random directions, in standard errors."""
    parameters = [p for name, p in model.named_parameters() if "baseline" not in name]
    directions = torch.randn(sum(p.numel() for p in parameters), 20, dtype=torch.float64)

    def projected(objective: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(objective, parameters)]) @ directions

    exact = projected(model.router_objective(x, y))
    draws = [projected(-elbo.differentiable_loss(model, no_guide, x, y)) for _ in range(num_draws)]
    return standard_errors_off(torch.stack(draws), exact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("assignment", "num_layers"), [(GumbelMatching, 1), (DependentRounding, 1), (CapacitySkip, 2), (GumbelMatching, 2)]
)
def test_gradients_are_unbiased(assignment: type, num_layers: int) -> None:
    model = tiny(assignment, num_layers=num_layers, neural_baseline=True).double()
    assert gradients_off(model, *subset(), TraceRouting_ELBO()) < 5


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_biased_twin_fails_the_same_check(num_layers: int) -> None:
    model = tiny(CapacitySkip, num_layers=num_layers).double()
    with torch.no_grad():
        # A crowded expert, so that many are dropped.
        for layer in [model, model.second] if num_layers == 2 else [model]:
            layer.router.weight.mul_(0.1)
            layer.router.bias.copy_(torch.tensor([1.5, -1.5]))
    assert gradients_off(model, *subset(), TraceRouting_ELBO()) < 5
    assert gradients_off(model, *subset(), TraceRouting_ELBO(weighted=False), num_draws=800) > 7


@pytest.mark.parametrize("num_layers", [1, 2])
def test_predictive_sums_routing_out(num_layers: int) -> None:
    model, (x, y) = tiny(IndependentRouting, num_layers=num_layers).double(), subset()
    log_probs = model.predict(x).logits
    torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(5, dtype=torch.float64))
    marginal = model.marginal_log_likelihood(x, y)
    torch.testing.assert_close(log_probs.gather(-1, y.unsqueeze(-1)).squeeze(-1), marginal)


def test_neural_baselines_belong_to_their_layers() -> None:
    model = digits_mixture(CapacitySkip, num_layers=2, neural_baseline=True)
    assert isinstance(model.baseline, CostBaseline)
    assert model.baseline is not model.second.baseline


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="num_layers must be 1 or 2, got 3"):
        tiny(CapacitySkip, num_layers=3)
    with pytest.raises(ValueError, match="give baseline or neural_baseline, not both"):
        tiny(CapacitySkip, baseline={}, neural_baseline=True)
