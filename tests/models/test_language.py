"""The language model: against a loop over bytes, causal when it predicts, and with the gradients that it claims."""

import pyro
import pytest
import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.language import LanguageModel
from models.language_blocks import ExpertBlock
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.testing import GradientReport, exact_balanced_objective, gradient_report
from tests.models.small_language import by_expert, hidden, small, text

SITES = ["assignment_1", "assignment_2"]


def looped(model: LanguageModel, x: Tensor, assignments: list[Tensor]) -> Tensor:
    """The logits of one sequence, byte by byte."""
    h = hidden(model, x, assignments, blocks=len(model.feed_forward))
    last = model.feed_forward[-1]
    if isinstance(last, ExpertBlock):
        h = [v if e < 0 else v + by_expert(last, v, e) for v, e in zip(h, assignments[-1].tolist())]
    else:
        h = [v + last.output(last.hidden(last.norm(v)).relu()) for v in h]
    return torch.stack([model.readout(model.norm(v)) for v in h])


@pytest.mark.parametrize("num_expert_blocks", [1, 2])
@pytest.mark.parametrize("assignment", [GumbelMatching, CapacitySkip, DependentRounding, IndependentRouting])
def test_training_equals_a_loop_over_bytes(assignment: type, num_expert_blocks: int) -> None:
    model = small(assignment, num_expert_blocks=num_expert_blocks, capacity_factor=1.0)
    sequences = text(4, 8)
    x, y = sequences[:, :-1], sequences[:, 1:]
    trace = pyro.poutine.trace(model).get_trace(x, y)
    sites = SITES[:num_expert_blocks]
    assert [name for name in trace.nodes if name.startswith("assignment")] == sites
    for name in sites:
        assert trace.nodes[name]["fn"].batch_shape == (4, 1)
        assert trace.nodes[name]["value"].shape == (4, 1, 7)
    log_prob = trace.nodes["y"]["fn"].log_prob(y)
    for s in range(4):
        logits = looped(model, x[s], [trace.nodes[name]["value"][s, 0] for name in sites])
        torch.testing.assert_close(log_prob[s], -cross_entropy(logits, y[s], reduction="none"))


@pytest.mark.parametrize("sample", [False, True])
def test_predicting_equals_a_loop_over_bytes(sample: bool) -> None:
    model, x = small(), text(3, 9)
    logits, assignments = model.causal_logits(x, sample=sample)
    assert [z.shape for z in assignments] == [x.shape, x.shape]
    for s in range(3):
        torch.testing.assert_close(logits[s], looped(model, x[s], [z[s] for z in assignments]))
    favourites = [block.router(x).argmax(-1) for block in model.feed_forward]
    assert all(torch.equal(*pair) for pair in zip(assignments, favourites)) != sample


def test_one_expert_is_the_dense_model() -> None:
    model, x = small(num_experts=1), text(2, 9)
    logits, _ = model.causal_logits(x)
    trace = pyro.poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.nodes["y"]["fn"].logits.log_softmax(-1), logits.log_softmax(-1))
    assert (trace.nodes["assignment_1"]["value"] == 0).all()


@pytest.mark.parametrize("sample", [False, True])
def test_predicting_is_causal(sample: bool) -> None:
    """Whatever follows a byte changes nothing of what was said before; nor does how many sequences are asked about."""
    model, x = small(), text(3, 10)
    for t in (1, 5, 9):
        changed = x.clone()
        changed[:, t:] = 255 - changed[:, t:]
        served = []
        for sequences in (x, changed):
            torch.manual_seed(2)
            served.append(model.causal_logits(sequences, sample=sample))
        (logits, assignments), (other_logits, other_assignments) = served
        torch.testing.assert_close(logits[:, :t], other_logits[:, :t], rtol=0, atol=1e-12)
        assert not torch.isclose(logits[:, t], other_logits[:, t]).all()
        for z, other in zip(assignments, other_assignments):
            assert torch.equal(z[:, :t], other[:, :t])
    torch.testing.assert_close(model.causal_logits(x[:1, :4])[0], model.causal_logits(x)[0][:1, :4])


def test_a_matching_of_the_sequence_would_not_be() -> None:
    model, x = small(), text(20, 9)
    changed = x.clone()
    changed[:, 6:] = x[:, :3]
    modes = [GumbelMatching(model.feed_forward[0].router(s), capacity=3).mode[:, :6] for s in (x, changed)]
    assert not torch.equal(*modes)


def tiny(assignment: type, num_blocks: int = 2) -> tuple[LanguageModel, Tensor, Tensor]:
    """One sequence of four bytes, two experts; large weights, so that an expert changes what attention passes on."""
    options = {"capacity_factor": 1.0, "baseline": {"use_leave_one_out_baseline": True}}
    model = small(assignment, num_experts=2, num_blocks=num_blocks, num_expert_blocks=1, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        for part in (model.attention[-1], model.feed_forward[0].experts.output):
            for parameter in part.parameters():
                parameter.mul_(3.0)
        for table in model.feed_forward[0].router.tables:
            table.weight.mul_(0.1)
    return model, torch.tensor([[97, 98, 99, 97]]), torch.tensor([[98, 99, 97, 98]])


def report(model: LanguageModel, x: Tensor, y: Tensor, elbo: pyro.infer.ELBO) -> GradientReport:
    # The router's tables have the score function's gradients; of the rest, one layer behind them will do.
    parameters = {
        "router": model.feed_forward[0].router.tables[0].weight,
        "experts": model.feed_forward[0].experts.output.weight,
    }
    exact = lambda x, y: exact_balanced_objective(model, x, y)  # noqa: E731
    return gradient_report(model, None, elbo, x, y, exact=exact, parameters=parameters, num_samples=400)


@pytest.mark.slow
@pytest.mark.parametrize("assignment", [GumbelMatching, IndependentRouting])
def test_balanced_gradients_against_enumeration(assignment: type) -> None:
    model, x, y = tiny(assignment)
    elbo = TraceBalanced_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2)
    gradients = report(model, x, y, elbo)
    assert gradients.unbiased, gradients


def no_guide(x: Tensor, y: Tensor) -> None:
    pass


@pytest.mark.slow
def test_the_surrogate_is_biased_where_attention_follows_and_only_there() -> None:
    """With independent routing the balanced objective is the router objective, of interacting bytes."""
    for num_blocks, unbiased in ((2, False), (1, True)):
        model, x, y = tiny(IndependentRouting, num_blocks)
        elbo = TraceRouting_ELBO(check_meeting=False, num_particles=2, vectorize_particles=True, max_plate_nesting=2)
        gradients = report(model, x, y, elbo)
        assert gradients.unbiased == unbiased, gradients


@pytest.mark.slow
def test_scores_of_sequences_meet_their_own_costs() -> None:
    """The router's gradient of one sequence is as noisy in a large batch as alone."""
    model, x, y = tiny(GumbelMatching)
    weight = model.feed_forward[0].router.tables[0].weight
    others = torch.arange(120, 152).view(8, 4)
    deviations = []
    for inputs, targets in ((x, y), (torch.cat([x, others]), torch.cat([y, others]))):
        elbo, draws = TraceBalanced_ELBO(num_particles=2, max_plate_nesting=2), []
        for _ in range(200):
            loss = elbo.differentiable_loss(model, None, inputs, targets)
            draws.append(torch.autograd.grad(loss, weight)[0][97:100].flatten())
        deviations.append(torch.stack(draws).std(0))
    # A standard deviation from 200 draws is known to 5 %, heavy tails to a multiple of that.
    torch.testing.assert_close(*deviations, rtol=0.5, atol=0)


def test_generated_text_continues_the_prompt() -> None:
    model, prompt = small(), torch.tensor([97, 98])
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(prompt, 20, sample=True))
    assert texts[0].shape == (22,)
    assert torch.equal(texts[0][:2], prompt)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    # At temperature zero, nearly, the most probable byte follows.
    cold = model.generate(prompt, 3, temperature=1e-6)
    logits, _ = model.causal_logits(cold[None, :-1])
    assert torch.equal(cold[2:], logits[0, 1:].argmax(-1))


def test_drawn_observations_are_bytes() -> None:
    y = small()(text(2, 5))
    assert y.shape == (2, 5)
    assert Categorical(torch.ones(256)).support.check(y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_expert_blocks": 3}, "num_expert_blocks must be between 1 and 2, got 3"),
        ({"num_expert_blocks": 0}, "num_expert_blocks must be between 1 and 2, got 0"),
        ({"num_heads": 4}, "num_heads=4 must divide num_features=6"),
        ({"num_experts": 0}, "num_experts must be a positive int"),
        ({"hidden_features": 0}, "hidden_features must be a positive int"),
    ],
)
def test_bad_sizes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_bad_inputs() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"T <= 12, got \(1, 13\)"):
        model(text(1, 13))
    with pytest.raises(ValueError, match="prompt must have shape"):
        model.generate(torch.zeros(0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        model.generate(torch.tensor([1]), 3, temperature=0.0)
