"""With which probability should each expert process each datapoint? Marginals for a draw that respects capacity.

Both functions return r_ij with Σ_i r_ij <= c and Σ_j r_ij <= 1, or m where m experts process a datapoint. A draw with
these marginals is unbiased for the router p = softmax(logits) with the weights w_ij = p_ij / r_ij, whatever r is, as
long as r_ij > 0 where p_ij > 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prob_moe._transforms import without_derivative
from prob_moe.numerics._capacity import capacity_of_problems
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.numerics.rounding._marginals_batch import (
    solve_marginals,
    solve_selected_marginals,
    solve_selected_quickly,
)
from prob_moe.numerics.rounding._minimum_variance import LOOSE
from prob_moe.numerics.rounding._row_marginals import row_marginals

LEAST_PROBABILITY = 1e-150  # its square is a number still: of an expert that the logits allow


@dataclass(frozen=True)
class MinimumVarianceMarginals:
    """What :func:`minimum_variance_marginals` returns.

    :param float64_marginals: r_ij, float64 (\\*batch, n, k), with bounds that hold to the rounding of float64.
    :param datapoint_prices: α_i, (\\*batch, n): what a larger row bound would save; with several experts per
        datapoint of either sign.
    :param expert_prices: β_j >= 0, (\\*batch, k): what a larger capacity would save; the warm start of the next call.
    :param objective: Σ_ij p_ij²/r_ij = Σ_i E[w_i²], (\\*batch,).
    :param gap: upper bound, from the dual, on what the optimum could be below ``objective``, (\\*batch,).
    """

    float64_marginals: Tensor
    datapoint_prices: Tensor
    expert_prices: Tensor
    objective: Tensor
    gap: Tensor

    @property
    def marginals(self) -> Tensor:
        """r_ij, (\\*batch, n, k), in the dtype of the prices."""
        return self.float64_marginals.to(self.objective.dtype)

    @property
    def log_marginals(self) -> Tensor:
        """log r_ij, (\\*batch, n, k), in nats; −inf where the router's probability is 0."""
        return self.float64_marginals.log().to(self.objective.dtype)


@leaves_torch
@without_derivative
def minimum_variance_marginals(
    logits: Tensor,
    capacity: int | Tensor | None,
    *,
    num_selected: int | None = None,
    mask: Tensor | None = None,
    initial_prices: Tensor | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 200,
) -> MinimumVarianceMarginals:
    """The marginals whose importance weights have the least second moment that the capacity allows.

    Minimises Σ_ij p_ij²/r_ij subject to Σ_i r_ij <= c and Σ_j r_ij <= 1. With prices α, β >= 0 of the two bounds,

        r_ij = p_ij / sqrt(α_i + β_j),        w_ij = p_ij / r_ij = sqrt(α_i + β_j),

    so the weights are bounded, and exactly 1 where the router itself fits. By Jensen's inequality no unbiased
    weighting that respects capacity, random or not, has a smaller Σ_i E[w_i²]. A datapoint is dropped with probability
    1 − Σ_j r_ij; as long as all p_ij > 0 and n <= kc, this is 0. With more datapoints than slots all experts are full,
    and α_i = 0 where datapoint i is dropped with positive probability.

    **Several experts.** With ``num_selected`` = m > 1, r_ij is the probability that j is among the m distinct experts
    of datapoint i: r_ij <= 1, and Σ_j r_ij = m wherever the problem allows that with r_ij > 0 for every expert that is
    not forbidden. Then r_ij = p_ij / sqrt(max(α_i + β_j, p_ij²)) with α_i of either sign. A datapoint that allows fewer
    than m experts has all of them. Where there is no such r (n m > k min(c, n), or -inf in the way), all rows have
    Σ_j r_ij <= m and α_i >= 0 instead, and what is missing is dropped.

    The bounds hold to rounding whatever the convergence: a loose tolerance costs optimality, never unbiasedness.
    Solved by a barrier method on the dual, for m > 1 by a primal-dual one (4–12 times slower); O(nk²) a step, 6–60
    steps; compiled, parallel over the batch, in float64 on the CPU. Device and dtype of the result are those of
    ``logits`` (float32 for half precision); in float32 the marginals are rounded to float32, so pass
    ``logits.double()`` where the bounds shall hold beyond 1e-6. No gradient flows.

    :param logits: router logits, (\\*batch, n, k); −inf forbids an expert.
    :param capacity: c, the datapoints that one expert processes at most, a positive int or a long tensor (\\*batch);
        None for no limit.
    :param num_selected: m, the distinct experts per datapoint, from 1 to k; None means 1.
    :param mask: bool, (\\*batch, n); False marks a datapoint that is absent: it has r = 0 and takes no capacity.
    :param initial_prices: ``expert_prices`` of similar logits, (\\*batch, k), to start from; None starts cold.
    :param tolerance: relative optimality gap aimed at.
    :param max_steps: largest number of evaluations of the dual.
    :raises ValueError: if an argument has the wrong type, shape or value, or a present row allows no expert.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [8.0, 0.0], [8.0, 0.0]], dtype=torch.float64)
    >>> minimum_variance_marginals(logits, 2).marginals.sum(0).round(decimals=4)
    tensor([2., 2.], dtype=torch.float64)
    """
    values, present, slots = _router(logits, 1 if capacity is None else capacity, mask)
    picks = 1 if num_selected is None else num_selected
    if isinstance(picks, bool) or not isinstance(picks, int) or not 1 <= picks <= logits.shape[-1]:
        raise ValueError(f"num_selected must be an int from 1 to k = {logits.shape[-1]}, got {num_selected!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    *batch, n, k = logits.shape
    beta = torch.full((*batch, k), -1.0, dtype=torch.float64)
    if initial_prices is not None:
        if initial_prices.shape != beta.shape:
            raise ValueError(f"initial_prices must have shape {(*batch, k)}, got {tuple(initial_prices.shape)}")
        if not bool((torch.isfinite(initial_prices) & (initial_prices >= 0)).all()):
            raise ValueError("initial_prices must be finite and nonnegative, as expert_prices of an earlier call are")
        beta.copy_(initial_prices.detach())
    p = values.softmax(-1).cpu().contiguous()
    rows = torch.ones((*batch, n), dtype=torch.bool) if present is None else present.cpu()
    if present is not None:
        p.masked_fill_(~rows.unsqueeze(-1), 0.0)
    objective, gap = torch.empty(batch, dtype=torch.float64), torch.zeros(batch, dtype=torch.float64)
    alpha, r = torch.ones((*batch, n), dtype=torch.float64), torch.empty_like(p)
    if picks > 1 or capacity is None:
        allowed = (values.cpu() > -torch.inf) & rows.unsqueeze(-1)
        p = torch.where(allowed, p.clamp(min=LEAST_PROBABILITY), 0.0)
        row_marginals(p.view(-1, k).numpy(), picks, r.view(-1, k).numpy(), alpha.view(-1).numpy())
    if capacity is None:
        beta.zero_()
        objective = torch.where(p > 0.0, p * (p / r), 0.0).sum((-2, -1))
    else:
        problem = p.reshape(-1, n, k).numpy(), rows.reshape(-1, n).numpy(), slots.cpu().reshape(-1).contiguous().numpy()
        prices = alpha.view(-1, n).numpy(), beta.view(-1, k).numpy()
        result = r.view(-1, n, k).numpy(), objective.view(-1).numpy(), gap.view(-1).numpy()
        if picks == 1:
            solve_marginals(*problem, *prices, *result, tolerance, max_steps)
        else:
            objective.fill_(torch.nan)
            arguments = *problem, picks, *prices, *result, tolerance, max_steps
            if tolerance >= LOOSE:
                solve_selected_quickly(*arguments)
            if bool(objective.isnan().any()):
                solve_selected_marginals(*arguments)
    alpha.masked_fill_(~rows, 0.0)
    found = (value.to(logits.device, _result_dtype(logits)) for value in (alpha, beta, objective, gap))
    return MinimumVarianceMarginals(r.to(logits.device), *found)


def router_marginals(logits: Tensor, capacity: int | Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The router's own marginals, the overflow of each expert skipped evenly: r_ij = p_ij min(1, c / Σ_i p_ij).

    The weights p_ij / r_ij = max(1, Σ_i p_ij / c) depend on the expert alone. What overflows is dropped: datapoint i
    with probability 1 − Σ_j r_ij, whether or not other experts have room. One pass, no prices, never better than
    :func:`minimum_variance_marginals` in Σ_i E[w_i²]. No gradient flows.

    :param logits: router logits, (\\*batch, n, k); −inf forbids an expert.
    :param capacity: c, the datapoints that one expert processes at most, a positive int or a long tensor (\\*batch).
    :param mask: bool, (\\*batch, n); False marks a datapoint that is absent and takes no capacity.
    :returns: log r_ij, (\\*batch, n, k), in nats.
    :raises ValueError: as :func:`minimum_variance_marginals`.

    >>> router_marginals(torch.zeros(4, 2), 1).exp()[0]
    tensor([0.2500, 0.2500])
    >>> router_marginals(torch.tensor([[9.0, -9.0], [9.0, -9.0]]), 1).exp().sum(0)
    tensor([1.0000e+00, 3.0460e-08])
    """
    values, present, slots = _router(logits, capacity, mask)
    log_p = values.log_softmax(-1)
    if present is not None:
        log_p = log_p.masked_fill(~present.unsqueeze(-1), -torch.inf)
    excess = torch.logsumexp(log_p, -2, keepdim=True) - slots.double().log()[..., None, None]
    return (log_p - excess.clamp(min=0.0)).to(_result_dtype(logits))


def _result_dtype(logits: Tensor) -> torch.dtype:
    """Half precision cannot hold probabilities that sum to a capacity."""
    return torch.promote_types(logits.dtype, torch.float32)


def _router(logits: Tensor, capacity: int | Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Checked arguments: logits in float64 (0 in absent rows), which rows are present, None for all, and capacities."""
    if not logits.is_floating_point() or logits.dim() < 2 or 0 in logits.shape[-2:]:
        raise ValueError(
            f"logits must be floating-point of shape (*batch, n, k) with n, k >= 1, got {logits.dtype} of shape "
            f"{tuple(logits.shape)}"
        )
    slots = capacity_of_problems(capacity, tuple(logits.shape[:-2]), logits.device)
    values = logits.detach().double()
    present = None
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != logits.shape[:-1]:
            raise ValueError(
                f"mask must be bool of shape {tuple(logits.shape[:-1])}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        present = mask.to(logits.device)
        values = values.masked_fill(~present.unsqueeze(-1), 0.0)
    if not bool(torch.isfinite(values.amax(-1)).all()):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} hold a row with nan, +inf or nothing but -inf; every present "
            "datapoint needs finite logits or -inf, and at least one expert"
        )
    return values, present, slots
