"""Sets of m distinct experts per datapoint on plain tensors: entries of tables, and the coding of what was selected."""

import torch
from torch import Tensor

from prob_moe.numerics.conditional_poisson import (
    log_elementary_symmetric,
    log_pair_probabilities,
    sample_conditional_poisson,
)


def entries_of(table: Tensor, choices: Tensor, num_selected: int | None) -> Tensor:
    """
    The entries of a table with a number for every datapoint and expert, at the experts chosen.

    :param table: (*, n, k).
    :param choices: experts, long (*, n); with ``num_selected`` (*, m, n).
    :returns: in the shape of the choices, batch dimensions broadcast.
    """
    # Rows of the table side by side: never an m times larger table, also not for the gradient.
    index = choices.unsqueeze(-1) if num_selected is None else choices.mT
    lead = torch.broadcast_shapes(index.shape[:-1], table.shape[:-1])
    picked = table.expand(*lead, table.shape[-1]).gather(-1, index.expand(*lead, index.shape[-1]))
    return picked.squeeze(-1) if num_selected is None else picked.mT


def most_wanted(scores: Tensor, num_selected: int) -> Tensor:
    """
    The m experts of largest score for every datapoint, long (*, m, n), ascending.

    >>> most_wanted(torch.tensor([[1.0, 0.0, 2.0]]), 2)
    tensor([[0],
            [2]])
    """
    return scores.topk(num_selected, -1).indices.sort(-1).values.mT


def code_dropped(held: Tensor, scores: Tensor) -> Tensor:
    """
    Code sets of which some places are empty: ``~e`` stands for an empty place, with the experts e of largest score
    among those that the datapoint does not hold; the order is by expert.

    :param held: experts, long (*, m, n), -1 for an empty place.
    :param scores: (*, n, k), -inf for an expert that must not be named.
    :returns: long (*, m, n).

    >>> code_dropped(torch.tensor([[2], [-1]]), torch.tensor([[1.0, 0.0, 0.0]]))
    tensor([[-1],
            [ 2]])
    """
    k = scores.shape[-1]
    lead = torch.broadcast_shapes(held.shape[:-2], scores.shape[:-2])
    index = held.masked_fill(held < 0, k).mT.expand(*lead, scores.shape[-2], held.shape[-2])
    # Out of place, so that provenance survives; one more column takes what is empty.
    none = torch.zeros(*index.shape[:-1], k + 1, dtype=torch.bool, device=scores.device)
    holds = none.scatter(-1, index, True)[..., :k]
    experts = most_wanted(scores.expand(holds.shape).masked_fill(holds, torch.inf), held.shape[-2])
    return torch.where(holds.gather(-1, experts.mT).mT, experts, ~experts)


def choose_sets(log_odds: Tensor, num_selected: int, uniforms: Tensor) -> Tensor:
    """
    Conditional Poisson sets, P(S) proportional to the product of its odds.

    :param log_odds: (*, n, k).
    :param uniforms: numbers on [0, 1), (*, n, k).
    :returns: long (*, m, n), ascending.
    """
    return sample_conditional_poisson(log_odds, num_selected, uniforms=uniforms.movedim(-1, 0)).movedim(0, -2)


def set_log_prob(log_odds: Tensor, choices: Tensor) -> Tensor:
    r"""
    :math:`\sum_{j \in S} \log p_j - \log e_m(p)`.

    :param log_odds: (*, n, k).
    :param choices: long (*, m, n).
    :returns: nats, (*, n), differentiable.
    """
    m = choices.shape[-2]
    return entries_of(log_odds, choices, m).sum(-2) - log_elementary_symmetric(log_odds, m)


def pair_log_prob(log_odds: Tensor, choices: Tensor) -> Tensor:
    """
    Log-probability that a conditional Poisson set holds two of the chosen experts.

    :param log_odds: (*, n, k).
    :param choices: long (*, m, n).
    :returns: nats, (*, m, m, n); inclusion probabilities on the diagonal.
    """
    return log_pair_probabilities(log_odds, choices.movedim(-2, 0)).movedim((0, 1), (-3, -2))
