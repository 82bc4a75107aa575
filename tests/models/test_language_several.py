"""Several experts per byte in the last block: the bound against enumeration, serving against a loop, and its cost."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from models.language import LanguageModel
from models.language_blocks import ExpertBlock
from prob_moe.distributions import CapacitySkip, DependentRounding, IndependentRouting
from prob_moe.estimators import TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.testing import exact_mixture_bound
from tests.estimators.held import Held, expectation
from tests.models.small_language import by_expert, hidden, small, text


def several(assignment: Callable, m: int = 2, **options: Any) -> LanguageModel:
    """Experts in the last of two blocks, and weights so large that it matters which one works."""
    options = {"num_expert_blocks": 1, "experts_in": "last", "num_selected": m, "capacity_factor": 1.0, **options}
    model = small(assignment, **options)
    with torch.no_grad():
        for parameter in model.feed_forward[-1].experts.parameters():
            parameter.mul_(3.0)
        if isinstance(model.feed_forward[-1].router, torch.nn.Linear):
            model.feed_forward[-1].router.weight.mul_(2.0)
        else:
            model.feed_forward[-1].router.tables[0].weight.mul_(0.2)
    return model


def router_of_last(model: LanguageModel, x: Tensor, h: list[Tensor]) -> Tensor:
    """Router logits of one sequence, byte by byte, (T, k)."""
    block = model.feed_forward[-1]
    if block.sees == "bytes":
        return torch.stack([block.router.tables[0](byte) for byte in x])
    return torch.stack([block.router(block.norm(v)) for v in h])


def under_every_expert(model: LanguageModel, h: list[Tensor], y: Tensor) -> Tensor:
    """log p(y_t | expert j), by a loop, nats (T, k)."""
    block = model.feed_forward[-1]
    rows = []
    for v, byte in zip(h, y):
        laws = [model.readout(model.norm(v + by_expert(block, v, j))).log_softmax(-1) for j in range(3)]
        rows.append(torch.stack([law[byte] for law in laws]))
    return torch.stack(rows)


@pytest.mark.parametrize("router", ["bytes", "hidden"])
@pytest.mark.parametrize("assignment", [IndependentRouting, CapacitySkip, DependentRounding])
def test_the_likelihood_equals_a_loop_over_bytes_and_experts(assignment: Callable, router: str) -> None:
    model = several(assignment, router=router)
    x, y = text(3, 8)[:, :-1], text(3, 8)[:, 1:]
    trace = pyro.poutine.trace(model).get_trace(x, y)
    site = trace.nodes["assignment_2"]
    assert site["value"].shape == (3, 1, 2, 7)
    log_prob = trace.nodes["y"]["fn"].log_prob(y)
    kappa = site["fn"].keep_probability(site["value"])[:, 0]
    weights = site["fn"].importance_weights(site["value"])[:, 0]
    for s in range(3):
        h = hidden(model, x[s], [], blocks=2)
        f = under_every_expert(model, h, y[s])
        for t in range(7):
            z = site["value"][s, 0, :, t].tolist()
            kept = [weights[s, i, t] * f[t, e].exp() for i, e in enumerate(z) if e >= 0]
            bound = (kappa[s, t] * sum(kept)).log() / kappa[s, t] if kept else torch.zeros((), dtype=torch.float64)
            torch.testing.assert_close(log_prob[s, t], bound)


@pytest.mark.parametrize(
    ("assignment", "capacity", "n", "router"),
    [
        (IndependentRouting, None, 3, "hidden"),
        pytest.param(IndependentRouting, None, 4, "bytes", marks=pytest.mark.slow),
        pytest.param(CapacitySkip, 1, 3, "hidden", marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_of_the_bound_against_enumeration(
    assignment: type, capacity: int | None, n: int, router: str
) -> None:
    options: dict[str, Any] = {} if capacity is None else {"capacity": capacity, "capacity_factor": None}
    held = Held(assignment, **options)
    model = several(held, router=router)
    x, y = text(1, n + 1)[:, :-1], text(1, n + 1)[:, 1:]
    block = model.feed_forward[-1]
    leaves = [*block.router.parameters(), *block.experts.parameters(), model.readout.weight, model.places]
    h = hidden(model, x[0], [], blocks=2)
    logits, f = router_of_last(model, x[0], h), under_every_expert(model, h, y[0])
    law = assignment(logits, num_selected=2, **({} if capacity is None else {"capacity": capacity}))
    draws = (([(held, z[None, None])], ["assignment_2"]) for z in law.enumerate_support())
    value, *gradients = expectation(TraceMixture_ELBO(max_plate_nesting=2), lambda: model(x, y), None, leaves, draws)
    exact = exact_mixture_bound(law, f)
    torch.testing.assert_close(value, exact.detach())
    for found, wanted in zip(gradients, torch.autograd.grad(exact, leaves, retain_graph=True)):
        torch.testing.assert_close(found, wanted)
    # Below the likelihood itself, whose gradient is another one.
    marginal = (logits.log_softmax(-1) + f).logsumexp(-1).sum()
    assert exact < marginal - 1e-3
    other = torch.autograd.grad(marginal, leaves[0])[0]
    assert (gradients[0] - other).abs().max() > 1e-3


@pytest.mark.parametrize("assignment", [IndependentRouting, DependentRounding])
def test_with_all_experts_it_is_the_likelihood_of_the_mixture(assignment: type) -> None:
    model = several(assignment, m=3, router="hidden")
    x, y = text(1, 6)[:, :-1], text(1, 6)[:, 1:]
    h = hidden(model, x[0], [], blocks=2)
    f = under_every_expert(model, h, y[0])
    exact = (router_of_last(model, x[0], h).log_softmax(-1) + f).logsumexp(-1).sum()
    loss = TraceMixture_ELBO(max_plate_nesting=2).differentiable_loss(model, None, x, y)
    torch.testing.assert_close(-loss, exact, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    for found, wanted in zip(*(torch.autograd.grad(value, parameters) for value in (-loss, exact))):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.predict(x, num_selected=3).log_prob(y).sum(), exact.detach())


def test_everything_below_the_last_block_is_computed_once() -> None:
    calls: list[tuple[str, int]] = []

    def count(name: str) -> Callable:
        return lambda module, inputs, output: calls.append((name, output.shape[:-1].numel()))

    model, x = several(DependentRounding), text(2, 10)
    for name in ("attention", "feed_forward"):
        for block, module in enumerate(getattr(model, name)):
            if not isinstance(module, ExpertBlock):
                module.register_forward_hook(count(f"{name} {block}"))
    model.feed_forward[-1].experts.register_forward_hook(count("experts"))
    model.readout.register_forward_hook(count("read-out"))
    model(x[:, :-1], x[:, 1:])
    below = [(f"{name} {block}", 18) for block in range(2) for name in ("attention", "feed_forward")][:3]
    assert calls == [*below, ("experts", 36), ("read-out", 36)]


@pytest.mark.parametrize("router", ["bytes", "hidden"])
def test_serving_mixes_the_favourites_and_is_causal(router: str) -> None:
    model, x = several(DependentRounding, router=router), text(2, 9)
    law, (z,) = model.predict(x), model.causal_logits(x)[1]
    assert z.shape == (2, 2, 9)
    for s in range(2):
        h = hidden(model, x[s], [], blocks=2)
        p = router_of_last(model, x[s], h).softmax(-1)
        for t in range(9):
            best = sorted(p[t].topk(2).indices.tolist())
            assert z[s, :, t].tolist() == best
            block, v = model.feed_forward[-1], h[t]
            laws = [model.readout(model.norm(v + by_expert(block, v, e))).softmax(-1) for e in best]
            mixed = sum(p[t, e] * one for e, one in zip(best, laws)) / p[t, best].sum()
            torch.testing.assert_close(law.probs[s, t], mixed)
    changed = x.clone()
    changed[:, 5:] = 255 - changed[:, 5:]
    torch.testing.assert_close(model.predict(changed).logits[:, :5], law.logits[:, :5], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.predict(x[:1, :4]).logits, law.logits[:1, :4])
    assert not torch.allclose(model.predict(x, num_selected=1).logits, law.logits)


def test_draws_are_those_of_the_mixture_of_all_experts() -> None:
    """One byte, drawn often: its frequencies are the mixture's, which those of two favourites are not."""
    model, x = several(IndependentRouting, router="hidden", hidden_features=2), text(1, 1).expand(20_000, 1)
    with torch.no_grad():
        model.readout.bias[:90] = model.readout.bias[110:] = -30.0
    torch.manual_seed(0)
    drawn, texts = model(x), torch.stack([model.generate(x[0], 1, sample=True) for _ in range(20)])
    frequencies = drawn.flatten().bincount(minlength=256) / len(x)
    for m, right in ((3, True), (2, False)):
        p = model.predict(x[:1], num_selected=m).probs[0, 0]
        errors = (frequencies - p) / (p * (1 - p) / len(x)).sqrt().clamp(min=1e-9)
        assert (errors[90:110].abs().max() < 5) == right
    assert ((texts[:, 1] >= 90) & (texts[:, 1] < 110)).all()


@pytest.mark.parametrize("elbo", [TraceMixture_ELBO, TraceRouting_ELBO])
def test_behind_the_last_block_bytes_do_not_meet(elbo: type) -> None:
    """The check of the estimators passes where the last block alone has experts, and finds attention elsewhere."""
    x, y = text(2, 9)[:, :-1], text(2, 9)[:, 1:]
    last = several(CapacitySkip, router="hidden")
    assert not last.datapoints_meet
    elbo(max_plate_nesting=2).differentiable_loss(last, None, x, y).backward()
    assert all(p.grad.isfinite().all() for p in last.parameters())
    both = several(CapacitySkip, num_expert_blocks=2)
    assert both.datapoints_meet
    with pytest.raises(ValueError, match=r"meet not through the capacity only"):
        elbo(max_plate_nesting=2).differentiable_loss(both, None, x, y)
    trace = pyro.poutine.trace(both).get_trace(x, y)
    assert [trace.nodes[f"assignment_{block}"]["value"].shape for block in (1, 2)] == [(2, 1, 8), (2, 1, 2, 8)]


def test_particles_and_float32() -> None:
    model = several(DependentRounding, num_expert_blocks=2, router="hidden").float()
    x, y = text(2, 9)[:, :-1], text(2, 9)[:, 1:]
    elbo = TraceMixture_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2, check_meeting=False)
    loss = elbo.differentiable_loss(model, None, x, y)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 2, "num_expert_blocks": 1}, "num_selected=2 wants experts in the last block"),
        ({"num_selected": 4}, "num_selected=4 exceeds the number of experts, 3"),
        ({"num_selected": 0}, "num_selected must be a positive int, but is 0"),
        ({"experts_in": "middle"}, "experts_in must be 'first' or 'last', got 'middle'"),
        ({"router": "eyes"}, "router must be 'bytes' or 'hidden', got 'eyes'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(DependentRounding, **options)


@pytest.mark.parametrize(("router", "default"), [("bytes", 5.0), ("hidden", 3**-0.5)])
def test_routers_start_at_the_scale_asked_for(router: str, default: float) -> None:
    """The standard deviation of the logits, where what a router of hidden features sees has unit variance."""
    for scale, wanted in ((None, default), (2.0, 2.0)):
        model = small(
            DependentRounding, router=router, router_scale=scale, num_experts=400, num_features=48, num_expert_blocks=1
        )
        block = model.feed_forward[0]
        seen = torch.arange(256) if router == "bytes" else block.norm(torch.randn(256, 48).double())
        assert float(block.router(seen).detach().std()) == pytest.approx(wanted, rel=0.06)


def test_too_many_favourites() -> None:
    with pytest.raises(ValueError, match="num_selected=4 exceeds the number of experts, 3"):
        several(DependentRounding).predict(text(1, 3), num_selected=4)
    with pytest.raises(ValueError, match="num_selected=2 wants experts in the last block"):
        small(DependentRounding, num_expert_blocks=1).predict(text(1, 3), num_selected=2)
