"""Balanced transport plans with few non-zeros, and their gradient."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from prob_moe.numerics.transport.lbfgs import minimize_lbfgs


class SparsePlan(NamedTuple):
    r"""A transport plan from datapoints to experts.

    :param plan: T, (\*batch, n, k), with rows that sum to 1 (0 for padding) and at most m non-zeros.
    :param prices: β, (\*batch, k) float64, with the gradient that keeps the experts' sums.
    :param imbalance: largest :math:`|\sum_i T_{ij} - n / k|` over the experts, in datapoints, (\*batch,) float64.
    """

    plan: Tensor
    prices: Tensor
    imbalance: Tensor


def sparse_transport(
    similarity: Tensor,
    max_nonzeros: int,
    *,
    regularization: float = 1.0,
    mask: Tensor | None = None,
    max_iterations: int = 200,
) -> SparsePlan:
    r"""
    Quadratically regularised transport, with at most m non-zeros in the plan of every datapoint:

    .. math::
        \max_T \sum_{ij} P_{ij} T_{ij} - \tfrac{\gamma}{2} \sum_{ij} T_{ij}^2 \quad\text{where}\quad
        T \ge 0,\ \sum_j T_{ij} = 1,\ \|T_i\|_0 \le m,\ \sum_i T_{ij} = n / k,

    through its semi-dual, which is convex in the k prices:

    .. math::
        \min_\beta \frac{n}{k} \sum_j \beta_j + \sum_i \max_{t \in \Delta,\, \|t\|_0 \le m}
        \langle P_i - \beta, t\rangle - \tfrac{\gamma}{2} \|t\|^2 .

    The inner maximum projects the m largest entries of :math:`(P_i - \beta) / \gamma` onto the simplex. For m = k
    this is exact, and for m = 1 too where k divides n: it is the exact balanced matching. Otherwise the primal is not
    convex: the plan is the inner maximiser at the optimal prices, and where these sit at a tie, the experts' sums
    differ from n/k by ``imbalance``, usually less than one datapoint.

    **Gradient** of the plan, implicit: the derivative of the solution while its support stays. With
    :math:`C_i = \mathrm{diag}(a_i) - a_i a_i^\top / |a_i|` of the support :math:`a_i` of row i, and
    :math:`H = \sum_i C_i`,

    .. math:: dT_i = \tfrac1\gamma C_i (dP_i - d\beta), \qquad H\, d\beta = \sum_i C_i\, dP_i .

    It is exact for almost all P where the experts' sums are met: always for m = k, rarely for m far below the support
    of the plan without a limit. At a tie the plan jumps, and this is the derivative with the choices held.
    For m = 1 it is 0.

    Float64 inside; cost O(nk) memory and O(nk log k) an evaluation, on the device of the similarity.

    Source: Liu, Puigcerver & Blondel (2023), "Sparsity-constrained optimal transport", for the semi-dual and its
    non-zeros; the implicit differentiation is ours.

    :param similarity: P, float (\*batch, n, k), finite.
    :param max_nonzeros: m, from 1 to k.
    :param regularization: γ > 0, in units of the similarity.
    :param mask: (\*batch, n) bool; False for padding, which has no mass.
    :param max_iterations: the most L-BFGS steps.
    :raises ValueError: for ``max_nonzeros`` or ``regularization`` out of range.

    >>> sparse_transport(torch.tensor([[1.0, 0.0], [0.8, 0.0]]), 2).plan
    tensor([[0.5500, 0.4500],
            [0.4500, 0.5500]])
    """
    *batch, _, k = similarity.shape
    if isinstance(max_nonzeros, bool) or not isinstance(max_nonzeros, int) or not 1 <= max_nonzeros <= k:
        raise ValueError(f"max_nonzeros must be an int from 1 to k = {k}, but is {max_nonzeros!r}")
    if not 0 < regularization < math.inf:
        raise ValueError(f"regularization must be positive and finite, but is {regularization!r}")
    scores, present = _in_units(similarity, regularization, mask)
    share = present.sum(-1, keepdim=True) / k

    def semi_dual(prices: Tensor) -> tuple[Tensor, Tensor]:
        reduced = scores.detach() - prices.unsqueeze(-2)
        plan = _project(reduced, max_nonzeros) * present.unsqueeze(-1)
        value = ((reduced - plan / 2) * plan).sum((-2, -1)) + (share * prices).sum(-1)
        return value, share - plan.sum(-2)

    prices = minimize_lbfgs(semi_dual, scores.new_zeros(len(scores), k), max_iterations=max_iterations)
    prices = _polish(scores.detach(), prices, max_nonzeros, present, share)
    prices = _with_gradient(prices, scores, max_nonzeros, present)
    plan = _rows(scores, prices, max_nonzeros, present)
    imbalance = (plan.detach().sum(-2) - share).abs().amax(-1)
    return SparsePlan(
        plan.to(similarity.dtype).reshape(similarity.shape),
        (prices * regularization).reshape(*batch, k),
        imbalance.reshape(batch),
    )


def transport_rows(
    similarity: Tensor,
    prices: Tensor,
    allowed: Tensor,
    *,
    regularization: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""
    The rows that a plan has at given prices, over given entries:

    .. math:: T_i = \arg\max_{t \in \Delta,\ t_j = 0 \text{ unless allowed}}
        \langle P_i - \beta, t\rangle - \tfrac{\gamma}{2} \|t\|^2 .

    At the prices of :func:`sparse_transport`, and with the support of its plan allowed, it is that plan, with its
    gradient. Over other entries rows still sum to 1, but nothing balances the experts.

    **Gradient** in similarity and prices, while the support stays.

    :param similarity: P, float (\*batch, n, k), finite.
    :param prices: β, (\*batch, k).
    :param allowed: bool (\*batch, n, k), at least one entry of every row.
    :param regularization: γ > 0, in units of the similarity.
    :param mask: (\*batch, n) bool; False for padding, which has no mass.
    :returns: T, (\*batch, n, k).

    >>> allowed = torch.tensor([[True, False], [True, True]])
    >>> transport_rows(torch.tensor([[1.0, 0.0], [0.8, 0.0]]), torch.tensor([0.5, 0.0]), allowed)
    tensor([[1.0000, 0.0000],
            [0.6500, 0.3500]])
    """
    scores, present = _in_units(similarity, regularization, mask)
    prices = (prices.double() / regularization).reshape(len(scores), scores.shape[-1])
    rows = _rows(scores, prices, scores.shape[-1], present, allowed.reshape(scores.shape))
    return rows.to(similarity.dtype).reshape(similarity.shape)


def _in_units(similarity: Tensor, regularization: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """:returns: P in units of γ, float64 (b, n, k), and which datapoints have mass, 0 or 1, (b, n)."""
    *batch, n, k = similarity.shape
    scores = (similarity.double() / regularization).reshape(math.prod(batch), n, k)
    present = scores.new_ones(scores.shape[:-1]) if mask is None else mask.to(scores).reshape(scores.shape[:-1])
    return scores, present


def _project(points: Tensor, max_nonzeros: int) -> Tensor:
    """The largest entries of every point, projected onto the simplex, zeros elsewhere; (*, k)."""
    largest, index = points.topk(max_nonzeros)
    excess = largest.cumsum(-1) - 1
    order = torch.arange(1, max_nonzeros + 1, device=points.device)
    support = (largest * order > excess).sum(-1, keepdim=True)
    threshold = excess.gather(-1, support - 1) / support
    return torch.zeros_like(points).scatter(-1, index, (largest - threshold).clamp(min=0))


def _polish(scores: Tensor, prices: Tensor, max_nonzeros: int, present: Tensor, share: Tensor) -> Tensor:
    """A few Newton steps on the prices: exact once the support is right, kept where they lower the imbalance."""
    best = torch.full_like(prices[:, :1], torch.inf)
    kept = trial = prices
    for _ in range(4):
        plan = _project(scores - trial.unsqueeze(-2), max_nonzeros) * present.unsqueeze(-1)
        excess = plan.sum(-2) - share
        imbalance = excess.abs().amax(-1, keepdim=True)
        better = imbalance < 0.1 * best  # at a kink there is nothing to converge to
        kept = torch.where(better, trial, kept)
        best = torch.where(better, imbalance, best)
        _, inverse = _response(plan)
        trial = trial + (inverse @ excess.unsqueeze(-1)).squeeze(-1)
    return kept


def _response(plan: Tensor) -> tuple[Tensor, Tensor]:
    """
    :returns: the supports divided by their sizes, (b, n, k), and the pseudo-inverse of :math:`H = \\sum_i C_i`, (b,
        k, k): prices are determined up to a constant on every connected part of the support.
    """
    support, averaging = (plan > 0).to(plan), _averaging(plan)
    response = torch.diag_embed(support.sum(-2)) - support.mT @ averaging
    return averaging, torch.linalg.pinv(response, hermitian=True)


def _with_gradient(prices: Tensor, scores: Tensor, max_nonzeros: int, present: Tensor) -> Tensor:
    """The prices, (b, k), with the gradient by which they balance the plan."""
    plan = _project(scores.detach() - prices.unsqueeze(-2), max_nonzeros) * present.unsqueeze(-1)
    averaging, inverse = _response(plan)
    change = _centred(scores - scores.detach(), plan, averaging)
    return prices + (inverse @ change.sum(-2).unsqueeze(-1)).squeeze(-1)


def _rows(scores: Tensor, prices: Tensor, max_nonzeros: int, present: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The plan at given prices, (b, n, k), whose gradient is that of scores and prices at its support."""
    reduced = scores.detach() - prices.detach().unsqueeze(-2)
    if allowed is not None:
        reduced = reduced.masked_fill(~allowed, -torch.inf)
    plan = _project(reduced, max_nonzeros) * present.unsqueeze(-1)
    change = scores - scores.detach() - (prices - prices.detach()).unsqueeze(-2)  # 0, with a gradient
    return plan + _centred(change, plan, _averaging(plan))


def _averaging(plan: Tensor) -> Tensor:
    """The supports divided by their sizes, (b, n, k)."""
    support = (plan > 0).to(plan)
    return support / support.sum(-1, keepdim=True).clamp(min=1)


def _centred(rows: Tensor, plan: Tensor, averaging: Tensor) -> Tensor:
    """Entries on the support minus their mean over it, (b, n, k)."""
    return torch.where(plan > 0, rows - (averaging * rows).sum(-1, keepdim=True), 0.0)
