"""A draw carries what it knows: through Pyro, copies, threads and other logits, and says so where it is lost."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyro
import pytest
import torch
from torch import Tensor

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    Draw,
    GumbelMatching,
    IndependentRouting,
    draw_of,
)
from prob_moe.testing.statistics import deviation

PROCEDURES = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]
N, K, CAPACITY = 6, 3, 2


def logits_of(*shape: int) -> Tensor:
    return 1.5 * torch.randn(*shape, dtype=torch.float64)


def make(procedure: type[AssignmentDistribution], logits: Tensor) -> AssignmentDistribution:
    return procedure(logits) if procedure is IndependentRouting else procedure(logits, capacity=CAPACITY)


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_two_draws_of_one_object_keep_their_own_weights(procedure: type[AssignmentDistribution]) -> None:
    routing = make(procedure, logits_of(N, K))
    draws = [routing.draw() for _ in range(3)]
    for draw in draws:
        expected = (routing.router_log_prob(draw.value) - draw.log_proposal).exp()
        torch.testing.assert_close(routing.importance_weights(draw.value), expected)
    values = [routing.sample(torch.Size([4])) for _ in range(2)]
    weights = [routing.importance_weights(value) for value in values]
    torch.testing.assert_close(routing.importance_weights(values[0]), weights[0])


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["deep", "copy", "pickle"],
)
def test_copies_keep_the_draw(procedure: type[AssignmentDistribution], copied: Callable[[Tensor], Tensor]) -> None:
    routing = make(procedure, logits_of(2, N, K))
    value = routing.sample()
    torch.testing.assert_close(routing.importance_weights(copied(value)), routing.importance_weights(value))


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_through_pyro(procedure: type[AssignmentDistribution]) -> None:
    """Plates expand, particles are vectorised, replay hands on: the weights are those of the draw."""
    logits = logits_of(2, N, K)

    def model() -> tuple[Tensor, Tensor]:
        with pyro.plate("particles", 5, dim=-2), pyro.plate("batch", 2, dim=-1):
            first = pyro.sample("first", make(procedure, logits))
            second = pyro.sample("second", make(procedure, logits))
        return first, second

    trace = pyro.poutine.trace(model).get_trace()
    replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace()
    for name in ("first", "second"):
        site = trace.nodes[name]
        assert draw_of(site["value"], Draw) is not None
        weights = site["fn"].importance_weights(site["value"])
        assert weights.shape == (5, 2, N)
        again = replayed.nodes[name]
        torch.testing.assert_close(again["fn"].importance_weights(again["value"]), weights)


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_draw_replayed_under_other_logits_has_its_right_weights(procedure: type[AssignmentDistribution]) -> None:
    drawn, present = logits_of(N, K), logits_of(N, K)
    value = make(procedure, drawn).sample(torch.Size([20_000]))
    weights = make(procedure, present).importance_weights(value)
    one_hot = torch.nn.functional.one_hot(value.clamp(min=0), K).double()
    worst, index = deviation(weights.unsqueeze(-1) * one_hot, present.softmax(-1)).worst()
    assert worst < 5, index
    # The weights that forget under which logits the value was drawn fail the same check.
    stale = make(procedure, drawn).importance_weights(value)
    assert deviation(stale.unsqueeze(-1) * one_hot, present.softmax(-1)).worst()[0] > 20


def test_threads_keep_their_own() -> None:
    routing = GumbelMatching(logits_of(N, K), capacity=CAPACITY)

    def draw(_: int) -> bool:
        drawn = routing.draw()
        expected = (routing.router_log_prob(drawn.value) - drawn.log_proposal).exp()
        return torch.allclose(routing.importance_weights(drawn.value), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(draw, range(40)))


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_value_written_to_is_refused(procedure: type[AssignmentDistribution]) -> None:
    routing = make(procedure, logits_of(N, K))
    value = routing.sample()
    value[0] = (value[0].clamp(min=0) + 1) % K
    with pytest.raises(ValueError, match=r"value of shape \(6,\) was written to in place after it had been drawn"):
        routing.importance_weights(value)


def test_parts_of_a_draw_carry_nothing() -> None:
    matching = GumbelMatching(logits_of(N, K), capacity=CAPACITY)
    values = matching.sample(torch.Size([3]))
    with pytest.raises(ValueError, match="carries no draw"):
        matching.importance_weights(values[0])
    skip = CapacitySkip(logits_of(N, K), capacity=CAPACITY)
    values = skip.sample(torch.Size([3]))
    torch.testing.assert_close(skip.importance_weights(values[0]), skip.importance_weights(values)[0])


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_list_of_generators_makes_an_element_independent_of_its_companions(
    procedure: type[AssignmentDistribution],
) -> None:
    logits = logits_of(3, N, K)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    together = make(procedure, logits).draw(generator=generators()).value
    alone = [make(procedure, one).draw(generator=[source]).value for one, source in zip(logits, generators())]
    assert torch.equal(together, torch.stack(alone))
    one = [make(procedure, logits).draw(generator=torch.Generator().manual_seed(5)).value for _ in range(2)]
    assert torch.equal(*one)
    with pytest.raises(ValueError, match=r"one for each of the 3 elements of sample and batch shape \(3,\), got 2"):
        make(procedure, logits).draw(generator=generators()[:2])


def test_a_value_frees_what_it_carries_without_the_garbage_collector() -> None:
    matching = GumbelMatching(logits_of(N, K), capacity=CAPACITY)
    gc.disable()
    try:
        draw = matching.draw()
        watched = weakref.ref(draw.scores)
        del draw
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_draws_of_inference_mode(procedure: type[AssignmentDistribution]) -> None:
    """There torch does not count what is written into a tensor."""
    logits = logits_of(N, K)
    with torch.inference_mode():
        value = procedure(logits, capacity=CAPACITY).sample()
        weights = procedure(logits, capacity=CAPACITY).importance_weights(value)
        written = procedure(logits, capacity=CAPACITY).sample()
        written.sub_(1).add_(1)
        assert draw_of(written, Draw) is not None
        written[0] = (written[0] + 1) % K
        with pytest.raises(ValueError, match="written to in place"):
            draw_of(written, Draw)
    torch.testing.assert_close(procedure(logits, capacity=CAPACITY).importance_weights(value), weights)


class SamplesOnly(IndependentRouting):
    """A stranger's procedure that defines no draw."""

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._code_padding(self._sample_router(torch.Size(sample_shape)))

    def importance_weights(self, value: Tensor) -> Tensor:
        return torch.ones_like(value, dtype=self.logits.dtype)

    draw = AssignmentDistribution.draw


def test_sample_and_weights_alone_make_a_draw() -> None:
    routing = SamplesOnly(logits_of(N, K))
    draw = routing.draw()
    torch.testing.assert_close(draw.log_proposal, routing.router_log_prob(draw.value))
    with pytest.raises(NotImplementedError, match="SamplesOnly defines sample alone"):
        routing.draw(generator=torch.Generator())


def test_neither_draw_nor_sample() -> None:
    with pytest.raises(NotImplementedError, match="AssignmentDistribution defines neither draw nor sample"):
        AssignmentDistribution(torch.zeros(2, 2), capacity=1).sample()
