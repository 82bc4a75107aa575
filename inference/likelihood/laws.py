"""What every assignment distribution says about one assignment, checked by enumeration and by counting draws."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.intervals import wilson_interval
from inference.registry.builtin import REGISTRY
from prob_moe.diagnostics import LEAST_WEIGHTS, effective_sample_size, pareto_k
from prob_moe.distributions import AssignmentDistribution, GumbelMatching
from prob_moe.numerics import METHODS

#: problems with at most so many choices k^n are enumerated and counted
MOST_CHOICES = 2**10
#: numbers in the largest tensor of draws
ELEMENTS = 2**23


@dataclass(frozen=True)
class Likelihood:
    """
    One distribution on one assignment. Log-probabilities in nats; None where there is none.

    :param log_prob: of the assignment; -inf outside the support.
    :param error: standard error of ``log_prob``, 0 where it is exact.
    :param mode: the deterministic assignment used for serving, long (n,).
    :param mode_log_prob: of that.
    :param note: why there is no log-probability, or why it is -inf.
    :param support: all values, long (count, n), where the problem is small; and
    :param support_log_prob: theirs, (count,).
    :param draws: draws, long (num_draws, n), and
    :param weights: their importance weights.
    """

    routing: AssignmentDistribution
    assignment: Tensor
    log_prob: float | None
    error: float
    mode: Tensor
    mode_log_prob: float | None
    note: str
    support: Tensor | None
    support_log_prob: Tensor | None
    draws: Tensor
    weights: Tensor

    @property
    def total(self) -> float | None:
        """Sum of the probabilities of all values: 1, if the law is right."""
        return None if self.support_log_prob is None else float(self.support_log_prob.exp().sum())

    def frequency(self, assignment: Tensor | None = None) -> tuple[float, float, float]:
        """
        The share of the draws that were an assignment, by default :attr:`assignment`, and its 95 % interval.
        """
        hits = (self.draws == (self.assignment if assignment is None else assignment)).all(-1)
        return float(hits.double().mean()), *wilson_interval(int(hits.sum()), len(hits))

    def weight_summary(self) -> dict[str, float]:
        """Importance weights over draws and datapoints."""
        pooled = self.weights.flatten()
        return {
            "mean w": pooled.mean().item(),
            "mean w²": pooled.square().mean().item(),
            "max w": pooled.max().item(),
            "ESS share": effective_sample_size(pooled).item(),
            "Pareto k": pareto_k(pooled).item(),
            "dropped": (self.draws < 0).double().mean().item(),
        }


def likelihoods(
    logits: Tensor, capacity: int, assignment: Tensor | None = None, num_draws: int | None = None
) -> dict[str, Likelihood]:
    """
    :param logits: router logits, (n, k); computed in float64.
    :param assignment: long (n,), e for processed by expert e, ~e for meant for e and dropped; by default the matching
        of the logits.
    :param num_draws: by default 20,000, or fewer where they would not fit into memory.
    :returns: one for every distribution, by name.
    :raises ValueError: if something does not fit.
    """
    logits = logits.double()
    if logits.dim() != 2:
        raise ValueError(f"logits must be a matrix (n, k), got shape {tuple(logits.shape)}")
    routings = {name: entry.make(logits, capacity=capacity) for name, entry in REGISTRY.procedures.items()}
    n, k = logits.shape
    if assignment is None:
        assignment = routings["gumbel-matching"].mode
    _check_assignment(assignment, n, k)
    least = -(-LEAST_WEIGHTS // max(n, 1))
    if num_draws is None:
        num_draws = max(least, min(20_000, ELEMENTS // (n * k)))
    elif num_draws < least:
        raise ValueError(f"num_draws must be at least {least} for a fit of the weights' tail, got {num_draws}")
    return {name: _likelihood(routing, assignment, num_draws) for name, routing in routings.items()}


@torch.no_grad()
def _likelihood(routing: AssignmentDistribution, assignment: Tensor, num_draws: int) -> Likelihood:
    draws = routing.sample(torch.Size([num_draws]))
    weights = routing.importance_weights(draws)
    log_prob, error, mode_log_prob, note = None, 0.0, None, ""
    support, support_log_prob = None, None
    with warnings.catch_warnings():
        # Gumbel-Matching warns of a large error, which is shown.
        warnings.filterwarnings("ignore", message="log_prob of .* has a standard error")
        try:
            mode_log_prob = float(routing.log_prob(routing.mode))
            if not bool(routing.support.check(assignment)):
                log_prob, note = -math.inf, "the assignment is outside the support: over capacity, or drops"
            elif isinstance(routing, GumbelMatching):
                found = routing.likelihood(assignment)  # one integral, which can take a minute
                log_prob, error = float(found.log_prob), float(found.error)
                note = f"log P(z) by {METHODS[found.method]}"
            else:
                log_prob = float(routing.log_prob(assignment))
            if routing.num_experts**routing.num_datapoints <= MOST_CHOICES:
                support = routing.enumerate_support()
                support_log_prob = routing.log_prob(support)
        except NotImplementedError as reason:
            note = str(reason)
    law = log_prob, error, routing.mode, mode_log_prob, note, support, support_log_prob
    return Likelihood(routing, assignment, *law, draws, weights)


def _check_assignment(assignment: Tensor, n: int, k: int) -> None:
    if assignment.dtype != torch.long or assignment.shape != (n,):
        raise ValueError(
            f"assignment must have one whole number for each of the n = {n} datapoints, got {assignment.dtype} of "
            f"shape {tuple(assignment.shape)}"
        )
    outside = ((assignment >= k) | (assignment < -k)).nonzero()
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"assignment sends datapoint {i} to {int(assignment[i])}: with k = {k} experts entries are 0 to {k - 1}, "
            f"or -1 to -{k} for what is dropped (-1 - expert)"
        )
