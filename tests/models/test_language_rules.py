"""Rules in the seat of an assignment distribution: against a loop over bytes, and causal when they serve."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from inference.registry import RuleSetting
from inference.registry.builtin import REGISTRY
from inference.training.objective import batch_loss
from models.language import LanguageModel
from prob_moe.rules import SMEAR, ExpertChoice, Switch, TopGates
from tests.models.small_language import by_expert, hidden, small, text


def ruled(rule: object, **options: object) -> LanguageModel:
    return small(None, rule=rule, **{"num_expert_blocks": 1, "experts_in": "last", "router": "hidden", **options})


def logits_of(model: LanguageModel, x: Tensor, *, bytes_seen: bool) -> tuple[list[Tensor], Tensor]:
    block, h = model.feed_forward[-1], hidden(model, x, [], blocks=2)
    if bytes_seen:
        return h, torch.stack([block.layer.router.tables[0](byte) for byte in x])
    return h, torch.stack([block.layer.router(block.norm(v)) for v in h])


@pytest.mark.parametrize("router", ["bytes", "hidden"])
@pytest.mark.parametrize("served", [False, True])
def test_top_gates_and_switch_equal_a_loop(served: bool, router: str) -> None:
    """In training an expert takes the first that come, all first choices before all second ones; none is full later."""
    x, y = text(2, 9)[:, :-1], text(2, 9)[:, 1:]
    for m, rule in ((1, partial(Switch, capacity=3)), (2, partial(TopGates, capacity=4))):
        model = ruled(rule, router=router)
        logits = (
            model.causal_logits(x)[0] if served else pyro.poutine.trace(model).get_trace(x, y).nodes["y"]["fn"].logits
        )
        dropped = 0
        for s in range(2):
            h, scores = logits_of(model, x[s], bytes_seen=router == "bytes")
            p = scores.softmax(-1)
            out, free = [torch.zeros_like(v) for v in h], [3 if m == 1 else 4] * 3
            for choice in range(m):
                for t in range(8):
                    best = p[t].topk(m)
                    expert = int(best.indices[choice])
                    gate = best.values[choice] / (1 if m == 1 else best.values.sum())
                    if served or free[expert]:
                        out[t] = out[t] + gate * by_expert(model.feed_forward[-1], h[t], expert)
                    dropped += not free[expert]
                    free[expert] -= free[expert] > 0
            looped = torch.stack([model.readout(model.norm(v + o)) for v, o in zip(h, out)])
            torch.testing.assert_close(logits[s].log_softmax(-1), looped.log_softmax(-1))
        assert dropped


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.rules.items() if "fit" in entry.commands])
def test_every_rule_of_fit_trains_and_serves_causally(name: str) -> None:
    entry = REGISTRY.rules[name]
    model = ruled(lambda: entry.build(RuleSetting(3, 1.0, 0.01)), num_expert_blocks=2)
    x, y = text(3, 11)[:, :-1], text(3, 11)[:, 1:]
    batch_loss(model, None, "none")(x, y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    logits, assignments = model.causal_logits(x)
    assert all(z.shape in ((3, 1, 10), (3, 2, 10)) and (z >= 0).all() for z in assignments)
    changed = x.clone()
    changed[:, 6:] = 255 - changed[:, 6:]
    torch.testing.assert_close(model.causal_logits(changed)[0][:, :6], logits[:, :6], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.causal_logits(x[:1])[0], logits[:1])
    assert model.training


def test_what_looks_ahead_would_be_seen() -> None:
    """The check above fails for expert choice, whose bytes compete in serving, too."""
    model, x = ruled(partial(ExpertChoice, capacity_factor=1.0)), text(3, 10)
    changed = x.clone()
    changed[:, 6:] = 255 - changed[:, 6:]
    block, served = model.feed_forward[-1], []
    for sequences in (x, changed):
        h = torch.stack([torch.stack(hidden(model, s, [], blocks=2)) for s in sequences])
        served.append(block(h, sequences, everybody=True)[:, :6])
    assert not torch.allclose(*served)


def test_the_loss_of_a_rule_is_a_site_and_counts_every_byte() -> None:
    x, y = text(2, 9)[:, :-1], text(2, 9)[:, 1:]
    losses = []
    for weight in (0.0, 0.5):
        model = ruled(partial(Switch, load_balancing=weight, z_loss=0.0))
        trace = pyro.poutine.trace(model).get_trace(x, y)
        losses.append(float(batch_loss(model, None, "none")(x, y).detach()))
        trace.compute_log_prob()
        term = trace.nodes["assignment_2_loss"]["log_prob"].detach()
        assert term.shape == (2, 1)
    torch.testing.assert_close(losses[1] - losses[0], -float(term.sum()) / y.numel())
    assert losses[1] > losses[0] + 0.4


def test_bytes_to_be_drawn_are_served() -> None:
    """With a capacity of one byte nearly all would be dropped; what is drawn is as served."""
    model, x = ruled(partial(Switch, capacity=1)), text(2, 9)
    trace = pyro.poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.nodes["y"]["fn"].logits, model.predict(x).logits)
    assert not model.datapoints_meet
    drawn = Trace_ELBO(max_plate_nesting=2).loss(model, lambda *_: None, x, x)
    assert drawn > 0


def test_bad_rules() -> None:
    with pytest.raises(ValueError, match="give one of assignment and rule, got None and None"):
        small(None)
    with pytest.raises(ValueError, match="num_selected=2 is for assignment distributions"):
        ruled(Switch, num_selected=2)
    with pytest.raises(ValueError, match="num_selected=2 is for assignment distributions"):
        ruled(Switch).predict(text(1, 3), num_selected=2)
    with pytest.raises(ValueError, match="rule must give every byte experts of its own, got SMEAR"):
        ruled(SMEAR).predict(text(1, 3))
