"""What an arm says of its cost and of its view on later datapoints, counted and tried out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from inference.registry.entries import ALL_EXPERTS, SLOTS
from inference.study.arms import Arm, all_arms
from inference.study.learners import Learner
from inference.study.problems import Problem, digits_problem, pieces_problem
from inference.study.settings import DigitsRun, PiecesRun
from models.digits import HIDDEN, NUM_EXPERTS
from prob_moe.experts import BatchedExperts
from prob_moe.rules import MergedRouting

ARMS = all_arms()
EVERY = pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)
N = 40
#: what runs all experts forward on top of those whose output counts, for the gradient of the router alone
STRAIGHT_THROUGH = ("gumbel-softmax", "densemixer")


def built(arm: Arm) -> tuple[Problem, Learner]:
    """On digits, whose experts have hidden units, or on pieces, where somebody knows; four experts each."""
    problem: Problem
    if arm.needs_oracle:
        problem = pieces_problem(PiecesRun(arm.name, 0.1, 0.0, num_seeds=1, num_datapoints=N))
    else:
        problem = digits_problem(DigitsRun(arm.name, 0.1, 0.0))
        problem = replace(problem, train=tuple(part[:N] for part in problem.train))
    return problem, arm.build(problem)


class Counter:
    """Rows that experts of the usual size process, what is dropped included."""

    def __init__(self) -> None:
        self.rows = 0.0
        self.inside = False

    def count(self, method: Callable[..., Any], rows: Callable[..., float]) -> Callable[..., Any]:
        def counted(module: Any, *args: Any, **options: Any) -> Any:
            outermost, self.inside = not self.inside, True
            try:
                out = method(module, *args, **options)
            finally:
                self.inside = not outermost
            self.rows += rows(module, *args) if outermost else 0
            return out

        return counted


@contextmanager
def counted_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter = Counter()

    def width(experts: BatchedExperts) -> float:
        return 1.0 if experts.hidden_features is None else experts.hidden_features / HIDDEN

    of_entries = counter.count(BatchedExperts.forward, lambda experts, x, z, *_: z.numel() * width(experts))
    of_all = counter.count(
        BatchedExperts.dense, lambda experts, x: x.shape[:-1].numel() * experts.num_experts * width(experts)
    )
    of_slots = counter.count(BatchedExperts.forward_dispatched, lambda experts, slots: slots.shape[:-1].numel())
    # The parameters are averaged for every datapoint by itself, which costs as much as all experts.
    merged = counter.count(MergedRouting.output, lambda routing, experts, x: routing.weights.numel())
    with monkeypatch.context() as patched:
        patched.setattr(BatchedExperts, "forward", of_entries)
        patched.setattr(BatchedExperts, "dense", of_all)
        patched.setattr(BatchedExperts, "forward_dispatched", of_slots)
        patched.setattr(MergedRouting, "output", merged)
        yield counter


@EVERY
def test_a_step_costs_as_many_rows_of_experts_as_the_arm_says(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, learner = built(arm)
    learner.loss(*problem.train)  # the first one runs the model again, to see whether it may be used so
    with counted_rows(monkeypatch) as counter:
        learner.loss(*problem.train)
    if arm.evaluations == SLOTS:
        assert counter.rows == NUM_EXPERTS
        return
    each = counter.rows / N
    if arm.evaluations == ALL_EXPERTS:
        assert each == NUM_EXPERTS + (arm.name in STRAIGHT_THROUGH)
    else:
        assert each == arm.evaluations


@EVERY
def test_an_arm_looks_ahead_where_it_says_so(arm: Arm) -> None:
    """Outputs of the first half, as served, while everybody in the second half becomes like the first of all."""
    problem, learner = built(arm)
    x, half = problem.train[0], N // 2
    crowd = torch.cat([x[..., :half, :], x[..., :1, :].expand(x[..., half:, :].shape)], -2)
    outputs = []
    for batch in (x, crowd):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(learner.serve(batch)[..., :half, :])
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5) == (not arm.looks_ahead)
