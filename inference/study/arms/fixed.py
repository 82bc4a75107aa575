"""Arms whose routing is not learnt: what every way to learn it is measured against."""

from collections.abc import Iterator

import torch
from torch import Tensor

from inference.registry.entries import ALL_EXPERTS
from inference.study.arms.arm import Arm, Group
from inference.study.learners import FixedExperts, Learner
from inference.study.problems import Problem


def of_fixed_experts() -> Iterator[Arm]:
    likelihood = "likelihood of one expert, z fixed"
    yield Arm("oracle", Group.FIXED, likelihood, _oracle, needs_oracle=True)
    yield Arm("frozen router", Group.FIXED, likelihood, _frozen)
    yield Arm("one expert", Group.FIXED, likelihood, lambda p: FixedExperts(p.mixture, _first))
    wide = "likelihood of one expert with the hidden units of all"
    yield Arm("one wide expert", Group.FIXED, wide, _wide, evaluations=ALL_EXPERTS, needs_hidden=True)


def _oracle(problem: Problem) -> Learner:
    if problem.oracle is None:
        raise ValueError("the arm 'oracle' needs a task where somebody knows the right experts")
    return FixedExperts(problem.mixture, problem.oracle)


def _wide(problem: Problem) -> Learner:
    if problem.wide is None:
        raise ValueError("the arm 'one wide expert' needs a task whose experts have hidden units")
    return FixedExperts(problem.wide(), _first)


def _frozen(problem: Problem) -> Learner:
    return FixedExperts(problem.mixture, lambda x: problem.mixture.router(x).argmax(-1))


def _first(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)
