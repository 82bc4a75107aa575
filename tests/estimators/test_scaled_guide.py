"""An assignment that the guide draws, in a subsampled plate or under a scale: in expectation the ELBO of all data."""

from itertools import product

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from prob_moe.distributions import CapacitySkip, IndependentRouting
from prob_moe.distributions.support import router_choices
from prob_moe.estimators import TraceRouting_ELBO, per_datapoint_elbo
from tests.estimators.replicas import problem


def full_elbo(p: Tensor, q: Tensor, f: Tensor) -> Tensor:
    """sum_i E_q[f_i + log p_i - log q_i]"""
    return (q.softmax(-1) * (f + p.log_softmax(-1) - q.log_softmax(-1))).sum()


class Subsampled:
    """
    Datapoints i of f (n, k), of which a subsample is seen; what the guide draws is set from outside.
    """

    def __init__(self, p: Tensor, q: Tensor, f: Tensor, procedure: type = IndependentRouting) -> None:
        self.p, self.q, self.f = p.clone().requires_grad_(), q.clone().requires_grad_(), f
        self.rows, self.value = torch.arange(len(f)), torch.zeros(0, dtype=torch.long)
        outer = self

        class Forced(procedure):
            def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
                return outer.value

        self.proposal = Forced

    def model(self) -> None:
        plate = pyro.plate("data", len(self.f), subsample=self.rows, dim=-1)
        z = pyro.sample("z", IndependentRouting(self.p[self.rows]))
        with plate:
            choices = router_choices(z).unsqueeze(-1)
            pyro.factor("f", self.f[self.rows].gather(-1, choices).squeeze(-1))

    def guide(self) -> None:
        pyro.sample("z", self.proposal(self.q[self.rows], capacity=len(self.rows)))

    def expected(self, scale: float, parts: int) -> tuple[Tensor, list[Tensor]]:
        """
        Loss and gradients, averaged over the parts of a partition of the data and over all draws of the guide.

        Every datapoint is in one part of equal size, so the parts have the expectation of random subsamples.
        """
        elbo = TraceRouting_ELBO()
        value, gradients = torch.zeros(()), [torch.zeros(()), torch.zeros(())]
        scaled = poutine.scale(self.model, scale), poutine.scale(self.guide, scale)
        for rows in torch.arange(len(self.f)).reshape(-1, parts).mT:
            self.rows = rows
            log_q = self.q.detach()[rows].log_softmax(-1)
            for choices in product(range(self.f.shape[-1]), repeat=len(rows)):
                self.value = torch.tensor(choices)
                share = log_q.gather(-1, self.value.unsqueeze(-1)).sum().exp() / parts
                loss = elbo.differentiable_loss(*scaled)
                drawn = torch.autograd.grad(-loss, [self.p, self.q])
                value = value - share * loss.detach()
                gradients = [total + share * gradient for total, gradient in zip(gradients, drawn)]
        return value, gradients


def subsampled(num_datapoints: int, num_experts: int, procedure: type = IndependentRouting) -> Subsampled:
    q, f = problem(num_datapoints, num_experts)
    return Subsampled(0.5 * q.flip(-1), q, f, procedure)


CASES = [
    ((20, 2), 4, 1.0, IndependentRouting),  # plate(20, subsample_size=5)
    ((6, 3), 1, 2.5, IndependentRouting),  # poutine.scale alone
    ((6, 2), 2, 3.0, CapacitySkip),  # both
]


@pytest.mark.parametrize(("sizes", "parts", "scale", "procedure"), CASES)
def test_unbiased_for_the_full_data(sizes: tuple[int, int], parts: int, scale: float, procedure: type) -> None:
    case = subsampled(*sizes, procedure)
    exact = scale * full_elbo(case.p, case.q, case.f)
    gradients = torch.autograd.grad(exact, [case.p, case.q])
    value, estimated = case.expected(scale, parts)
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(estimated, list(gradients))


@pytest.mark.parametrize(("sizes", "parts", "scale", "procedure"), CASES)
def test_unscaled_terms_fail_the_same_check(
    sizes: tuple[int, int], parts: int, scale: float, procedure: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_datapoint_elbo, "_scaled", lambda log_prob, site, frame: log_prob)
    case = subsampled(*sizes, procedure)
    exact = scale * full_elbo(case.p, case.q, case.f)
    (gradient,) = torch.autograd.grad(exact, case.p)
    value, (estimated, _) = case.expected(scale, parts)
    assert not torch.isclose(value, exact.detach(), rtol=0.01)
    torch.testing.assert_close(estimated, gradient / (parts * scale))


def test_a_masked_site_has_no_terms() -> None:
    """As everywhere in Pyro: poutine.mask takes log p and log q of a site away, here of half the batch elements."""
    p, _ = problem(4, 2)
    q, kept = -p, torch.tensor([[True], [False]])

    def model() -> None:
        with pyro.plate("batches", 2, dim=-2):
            with poutine.mask(mask=kept):
                pyro.sample("z", IndependentRouting(p.expand(2, 1, 4, 2)))
            with pyro.plate("data", 4, dim=-1):
                pyro.factor("f", torch.zeros(2, 4, dtype=p.dtype))

    def guide() -> None:
        with pyro.plate("batches", 2, dim=-2), poutine.mask(mask=kept):
            pyro.sample("z", IndependentRouting(q.expand(2, 1, 4, 2)))

    torch.manual_seed(0)
    z = poutine.trace(guide).get_trace().nodes["z"]["value"]
    torch.manual_seed(0)
    loss = TraceRouting_ELBO().loss(model, guide)
    terms = [IndependentRouting(logits).router_log_prob(z[0, 0]).sum() for logits in (p, q)]
    assert loss == pytest.approx(float(terms[1] - terms[0]))
