"""What a mixture refuses, in one line that names the argument, its value and what is allowed."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from models.language import LanguageModel
from models.stacked import StackedMixture
from prob_moe.distributions import CapacitySkip, IndependentRouting
from prob_moe.estimators import TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

X, Y = torch.zeros(5, 2), torch.zeros(5)


def normal(out: Tensor) -> dist.Normal:
    return dist.Normal(out.squeeze(-1), 1.0)


def mixture_of(**options: object) -> MixtureOfExperts:
    options = {"router": nn.Linear(2, 3), "experts": BatchedExperts(3, 2, None, 1), "likelihood": normal} | options
    return MixtureOfExperts(**options, assignment=CapacitySkip, capacity_factor=1.0)


def stacked_of(**options: object) -> StackedMixture:
    options = {"router": nn.Linear(2, 3), "experts": BatchedExperts(3, 2, None, 2), "second": mixture_of()} | options
    return StackedMixture(**options, assignment=CapacitySkip, capacity_factor=1.0)


BASELINE = r"baseline must be None, a module .*, or a dict of options .*, got 'decaying'"
FORMS = r"experts must be a BatchedExperts, or one module .*different forms.*, got ModuleList"
DIFFERENT = nn.ModuleList([nn.Linear(2, 1), nn.Bilinear(2, 2, 1)])


@pytest.mark.parametrize("build", [mixture_of, stacked_of])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(baseline="decaying"), BASELINE),
        (dict(baseline={"decaying": True}), r"baseline: unknown baseline options \['decaying'\]; known are"),
        (dict(experts=DIFFERENT), FORMS),
        (dict(experts=[nn.Linear(2, 1)]), r"experts must be .*, got list"),
    ],
)
def test_building(build: Callable, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(**options)
    assert "\n" not in str(error.value)


def test_building_a_language_model() -> None:
    with pytest.raises(ValueError, match=BASELINE):
        LanguageModel(CapacitySkip, baseline="decaying")


CALLS: dict[str, Callable] = {
    "forward": lambda model, x, y: model(x, y),
    "elbo": lambda model, x, y: TraceRouting_ELBO().loss_and_grads(model, None, x, y),
    "router_objective": lambda model, x, y: model.router_objective(x, y),
    "marginal": lambda model, x, y: model.marginal_log_likelihood(x, y),
    "predict": lambda model, x, y: model.predict(x),
    "responsibilities": lambda model, x, y: model.responsibilities(x, y),
}
OBSERVED = [name for name in CALLS if name != "predict"]


@pytest.mark.parametrize("call", CALLS)
def test_no_datapoints(call: str) -> None:
    message = r"x must have shape \(\*batch, n, d\) with n >= 1 datapoints, got \(0, 2\)"
    with pytest.raises(ValueError, match=message):
        CALLS[call](mixture_of(), X[:0], Y[:0])
    if call != "responsibilities":
        with pytest.raises(ValueError, match=message):
            CALLS[call](stacked_of(), X[:0], Y[:0])


@pytest.mark.parametrize("call", CALLS)
def test_a_router_of_another_width(call: str) -> None:
    message = r"router must return logits of shape \(\*batch, n, k\) with n = 5 and k = 3 experts, got \(5, 4\)"
    with pytest.raises(ValueError, match=message):
        CALLS[call](mixture_of(router=nn.Linear(2, 4)), X, Y)
    if call != "responsibilities":
        with pytest.raises(ValueError, match=message):
            CALLS[call](stacked_of(router=nn.Linear(2, 4)), X, Y)


@pytest.mark.parametrize("call", OBSERVED)
def test_observations_of_another_shape(call: str) -> None:
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 5\) for n = 5 datapoints, got \(5, 1\)"):
        CALLS[call](mixture_of(), X, Y.unsqueeze(-1))
    vectors = mixture_of(
        experts=BatchedExperts(3, 2, None, 4), likelihood=lambda out: dist.Normal(out, 1.0).to_event(1)
    )
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 5, 4\) for n = 5 datapoints, got \(5,\)"):
        CALLS[call](vectors, X, Y)


@pytest.mark.parametrize("call", CALLS)
def test_a_likelihood_that_keeps_the_output_dimension(call: str) -> None:
    mixture = mixture_of(likelihood=lambda out: dist.Normal(out, 1.0))
    with pytest.raises(ValueError, match=r"likelihood must return batch shape .*; use out.squeeze\(-1\)"):
        CALLS[call](mixture, X, Y)


@pytest.mark.parametrize("mask", [torch.ones(5), torch.ones(4, dtype=torch.bool)])
def test_masks(mask: Tensor) -> None:
    mixture, message = mixture_of(), r"mask must be a bool tensor|mask of shape \(4,\) does not broadcast"
    with pytest.raises(ValueError, match=message):
        mixture(X, Y, mask)
    with pytest.raises(ValueError, match=message):
        mixture.marginal_log_likelihood(X, Y, mask)
    with pytest.raises(ValueError, match=message):
        mixture.predict(X, mask=mask)


@pytest.mark.parametrize("num_selected", [0, 4, 1.5, True])
def test_num_selected(num_selected: object) -> None:
    for model in (mixture_of(), stacked_of()):
        with pytest.raises(ValueError, match=rf"num_selected.*{num_selected}"):
            model.predict(X, num_selected=num_selected)


def test_a_language_model_without_bytes() -> None:
    model = LanguageModel(IndependentRouting, num_features=8, hidden_features=8)
    with pytest.raises(ValueError, match=r"at least one byte and T <= 128, got \(2, 0\)"):
        model(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"y must have the shape of x, \(2, 3\), got \(2, 1\)"):
        model(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long))


def test_more_labels_than_datapoints_are_no_mistake() -> None:
    """Leading dimensions of y broadcast: every class for every datapoint."""
    assert mixture_of().marginal_log_likelihood(X, torch.zeros(7, 5)).shape == (7, 5)
    with pyro.plate("batches", 4, dim=-2):
        assert mixture_of()(X, torch.zeros(4, 5)).shape == (4, 5)
