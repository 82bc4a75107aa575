"""Whatever stands in padding changes nothing: not a value, not a gradient, to the last bit."""

import pytest
import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution, CapacitySkip, DependentRounding, GumbelMatching
from tests.distributions.test_contract import DISTRIBUTIONS, logits_of

FILLINGS = [torch.nan, torch.inf, -torch.inf, 1e300]


def everything(distribution: type[AssignmentDistribution], logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """All that a distribution says of a batch with padding, and the gradients in the logits."""
    torch.manual_seed(4)
    logits = logits.clone().requires_grad_()
    routing = distribution(logits, capacity_factor=1.2, mask=mask, validate_args=True)
    grown = routing.expand((2, *routing.batch_shape))
    value = routing.sample((3,))
    found = {
        "sample": value,
        "mode": routing.mode,
        "weights": routing.importance_weights(value),
        "loads": routing.loads(value),
        "router_log_prob": routing.router_log_prob(value),
    }
    found["gradient of router_log_prob"] = torch.autograd.grad(
        found["router_log_prob"].square().sum(), logits, retain_graph=True
    )[0]
    if distribution is DependentRounding:
        found["log_marginals"] = routing.log_marginals
    else:
        found["score"] = routing.score_function(value)
        found["gradient of the score"] = torch.autograd.grad(found["score"].square().sum(), logits, retain_graph=True)[
            0
        ]
        found["log_prob"] = grown.log_prob(value[:2])
        found["gradient of log_prob"] = torch.autograd.grad(
            found["log_prob"].square().sum(), logits, retain_graph=True
        )[0]
    if distribution is GumbelMatching:
        found["conditional_logits"] = routing.conditional_logits(value)[:, mask]
        found["marginals"] = routing.marginals(3)[mask]
    return {what: found[what].detach() for what in found}


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_whatever_stands_in_padding_changes_nothing(distribution: type[AssignmentDistribution], filling: float) -> None:
    mask = torch.tensor([[True, False, True, True, True, False], [True] * 6, [False] * 6])
    logits = logits_of(3, 6, 3)
    expected = everything(distribution, logits, mask)
    ours = everything(distribution, logits.masked_fill(~mask.unsqueeze(-1), filling), mask)
    for what, value in expected.items():
        assert torch.equal(ours[what], value), what
        if what.startswith("gradient"):
            assert value.isfinite().all(), what
            assert (ours[what][~mask] == 0).all(), what


@pytest.mark.parametrize("distribution", [GumbelMatching, CapacitySkip])
def test_forbidden_experts_beside_padding(distribution: type[AssignmentDistribution]) -> None:
    """-inf logits of a datapoint that is present, beside rows of NaN."""
    logits, mask = logits_of(5, 3), torch.tensor([True, True, False, True, False])
    logits[0, 2] = -torch.inf
    padded = logits.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    routing, alone = distribution(padded, capacity_factor=1.0, mask=mask), distribution(logits[mask], capacity=1)
    value = alone.sample()
    coded = torch.full((5,), -1).masked_scatter(mask, value)
    torch.testing.assert_close(routing.log_prob(coded).detach(), alone.log_prob(value))
    gradient = torch.autograd.grad(routing.log_prob(coded), padded)[0]
    assert gradient.isfinite().all()
