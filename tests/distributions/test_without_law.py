"""Programs with a procedure that has no log_prob, and copies in the middle of training."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.inspect import get_model_relations
from torch import Tensor, nn

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import LossFreeBias, Switch


class Stranger(AssignmentDistribution):
    """Defines draws and nothing else."""

    limited = False

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return IndependentRouting(self.logits).sample(sample_shape)


@pytest.mark.parametrize("distribution", [DependentRounding, Stranger])
def test_the_graph_of_a_model_is_seen(distribution: type[AssignmentDistribution]) -> None:
    def model() -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", distribution(torch.zeros(6, 3) + shift, capacity=2))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(z.float(), 1.0), obs=torch.zeros(6))

    relations = get_model_relations(model)  # what pyro.render_model draws
    assert set(relations["sample_sample"]["z"]) == {"shift"}
    assert "z" in relations["sample_sample"]["y"]


@pytest.mark.parametrize("distribution", [DependentRounding, Stranger])
def test_conditioning_runs_and_its_error_names_the_ways(distribution: type[AssignmentDistribution]) -> None:
    def model() -> Tensor:
        z = pyro.sample("z", distribution(torch.zeros(4, 2), capacity=2))
        with pyro.plate("data", 4):
            return pyro.sample("y", dist.Normal(z.float(), 1e-3))

    value = torch.tensor([0, 1, 0, 1])
    conditioned = poutine.condition(model, {"z": value})
    assert torch.allclose(Predictive(conditioned, num_samples=2)()["y"], value.float(), atol=0.1)
    trace = poutine.trace(conditioned).get_trace()
    message = f"{distribution.__name__} has no joint log_prob: .*TraceRouting_ELBO .* router_log_prob .*site_filter"
    with pytest.raises(NotImplementedError, match=message):
        trace.log_prob_sum()
    # Inside of effect handlers too.
    with pytest.raises(NotImplementedError, match=message):
        poutine.block(lambda: poutine.trace(conditioned).get_trace().log_prob_sum())()
    assert trace.log_prob_sum(site_filter=lambda name, site: name != "z") > 0


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda original: pickle.loads(pickle.dumps(original))]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("distribution", [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding])
def test_copies_of_a_distribution_whose_logits_were_computed(
    distribution: type[AssignmentDistribution], copied: Callable[[Any], Any]
) -> None:
    logits = nn.Linear(3, 2)(torch.randn(4, 3))
    routing = distribution(logits, capacity=2)
    value = routing.sample()
    again = copied(routing)
    torch.testing.assert_close(again.importance_weights(value), routing.importance_weights(value))
    assert torch.equal(again.logits, logits)
    assert again.logits.is_leaf == again.logits.requires_grad


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("router", [Switch(), LossFreeBias(num_experts=2)])
def test_copies_of_routers_and_routings(router: nn.Module, copied: Callable[[Any], Any]) -> None:
    logits = nn.Linear(3, 2)(torch.randn(4, 3))
    routing = router(logits)
    assert torch.equal(copied(routing).gate, routing.gate)
    assert torch.equal(copied(router)(logits).gate, router(logits).gate)


def likelihood(out: Tensor) -> dist.Normal:
    return dist.Normal(out.squeeze(-1), 1.0)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("balanced", [False, True])
def test_copies_of_what_trains(balanced: bool, copied: Callable[[Any], Any]) -> None:
    experts = BatchedExperts(3, 2, None, 1)
    mixture = MixtureOfExperts(nn.Linear(2, 3), experts, likelihood, assignment=GumbelMatching, capacity=4)
    elbo = TraceBalanced_ELBO(num_particles=2) if balanced else TraceRouting_ELBO()
    objective = elbo(mixture, None)
    data = torch.randn(8, 2), torch.randn(8)
    objective(*data).backward()
    again = copied(objective)
    losses = []
    for each in (objective, again):
        torch.manual_seed(0)
        losses.append(each(*data))
    assert losses[0] == losses[1]
    losses[1].backward()
