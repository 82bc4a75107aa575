r"""Random sets of m distinct experts with odds p: conditional Poisson sampling.

.. math:: P(S) = \prod_{j \in S} p_j \,/\, e_m(p), \qquad e_m(p) = \sum_{|S| = m} \prod_{j \in S} p_j.

Everything here is a sum of products of probabilities, taken in logs. Nothing is ever subtracted: 1 - p_a of a saturated
router is 0 in float32, and the weights of its own expert would vanish with it.
Source: Chen, Dempster & Liu 1994, "Weighted finite population sampling to maximize entropy", Biometrika 81.
"""

import torch
from torch import Tensor

# Stands for log 0 inside the recursions: the derivative of logsumexp(-inf, -inf) is NaN.
_LOG_ZERO = -1e30


def log_elementary_symmetric(log_odds: Tensor, num_selected: int) -> Tensor:
    """
    log e_m: the log of the summed products of all sets of m entries.

    :param log_odds: (\\*, k), float32 or float64; -inf for an entry that is never selected.
    :param num_selected: m, from 0 to k.
    :returns: (\\*), differentiable any number of times; -inf where fewer than m entries are allowed.

    >>> log_elementary_symmetric(torch.tensor([1.0, 2.0, 3.0]).log(), 2).exp()
    tensor(11.0000)
    """
    _check_num_selected(log_odds, num_selected)
    polynomial = _start(log_odds, num_selected)
    for log_odd in _floored(log_odds).unbind(-1):
        polynomial = _times_linear(polynomial, log_odd)
    return _unfloored(polynomial[-1])


def log_inclusion_probabilities(log_odds: Tensor, num_selected: int) -> Tensor:
    """
    log P(j in S) of every entry, by the product of the polynomials of the entries before and behind it.

    :param log_odds: (\\*, k), float32 or float64.
    :param num_selected: m, from 1 to k.
    :returns: (\\*, k) in nats, at most 0, differentiable; they sum to m in probability.

    >>> log_inclusion_probabilities(torch.tensor([1.0, 2.0, 3.0]).log(), 2).exp()
    tensor([0.4545, 0.7273, 0.8182])
    """
    _check_num_selected(log_odds, num_selected, least=1)
    floored = _floored(log_odds)
    before = _prefixes(floored, num_selected)
    behind = _prefixes(floored.flip(-1), num_selected)[::-1]
    # e_{m-1} without j: r entries from those before j, m - 1 - r from those behind it.
    without = [(before[j][:-1] + behind[j + 1][:-1].flip(0)).logsumexp(0) for j in range(floored.shape[-1])]
    log_inclusion = floored + torch.stack(without, -1) - before[-1][-1].unsqueeze(-1)
    return _unfloored(log_inclusion.clamp(max=0.0))


def log_pair_probabilities(log_odds: Tensor, selected: Tensor) -> Tensor:
    """
    log P(a in S and b in S) for all pairs a, b of a selected set.

    :param log_odds: (\\*, k), float32 or float64.
    :param selected: the set, long (m, \\*), distinct entries.
    :returns: (m, m, \\*) in nats; the diagonal holds the inclusion probabilities of the selected.

    >>> log_pair_probabilities(torch.zeros(3), torch.tensor([0, 2])).exp()
    tensor([[0.6667, 0.3333],
            [0.3333, 0.6667]])
    """
    num_selected = selected.shape[0]
    _check_num_selected(log_odds, num_selected, least=1)
    shape = torch.broadcast_shapes(selected.shape[1:], log_odds.shape[:-1])
    log_odds = log_odds.expand(*shape, log_odds.shape[-1])
    index = selected.expand(num_selected, *shape)
    own = _floored(log_odds).expand(num_selected, *log_odds.shape).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    total = _floored(log_elementary_symmetric(log_odds, num_selected))
    hidden = torch.nn.functional.one_hot(index, log_odds.shape[-1]).bool()
    rows: list[list[Tensor]] = [[own.new_zeros(())] * num_selected for _ in range(num_selected)]
    for a in range(num_selected):
        for b in range(a + 1):
            rest = log_odds.masked_fill(hidden[a] | hidden[b], -torch.inf)
            rest_size = num_selected - (1 if a == b else 2)
            both = own[a] if a == b else own[a] + own[b]
            pair = both + _floored(log_elementary_symmetric(rest, rest_size)) - total
            rows[a][b] = rows[b][a] = _unfloored(pair.clamp(max=0.0))
    return torch.stack([torch.stack(row) for row in rows])


def sample_conditional_poisson(
    log_odds: Tensor,
    num_selected: int,
    *,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Tensor:
    """
    Draw a set of m distinct entries with :math:`P(S)` proportional to the product of its odds.

    The entries are decided in order: each is taken with the probability that the remaining sets of those left give it.

    :param log_odds: (\\*, k), float32 or float64; at least m entries of each row are larger than -inf.
    :param num_selected: m, from 1 to k.
    :param generator: source of the randomness, one uniform number per entry.
    :param uniforms: these numbers themselves, (k, \\*), instead of a generator.
    :returns: long (m, \\*), ascending.

    >>> sample_conditional_poisson(torch.tensor([0.0, -torch.inf, 1.0]), 2)
    tensor([0, 2])
    """
    _check_num_selected(log_odds, num_selected, least=1)
    with torch.no_grad():
        floored = _floored(log_odds)
        k = floored.shape[-1]
        behind = _prefixes(floored.flip(-1), num_selected)[::-1]
        if uniforms is None:
            shape = (k, *floored.shape[:-1])
            uniforms = torch.rand(shape, dtype=floored.dtype, device=floored.device, generator=generator)
        missing = torch.full(floored.shape[:-1], num_selected, dtype=torch.long, device=floored.device)
        taken = []
        for j in range(k):
            now, later = behind[j], behind[j + 1]
            with_it = floored[..., j] + later.gather(0, (missing - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
            probability = (with_it - now.gather(0, missing.unsqueeze(0)).squeeze(0)).exp()
            # Whoever needs all that are left takes them, whatever rounding says; whoever needs none takes none.
            take = (missing > 0) & ((uniforms[j] < probability) | (missing >= k - j))
            taken.append(take)
            missing = missing - take.long()
        chosen = torch.stack(taken)
        # The chosen in their order; one more row takes the others.
        rank = torch.where(chosen, chosen.cumsum(0) - 1, num_selected)
        entries = torch.arange(k, device=rank.device).view(k, *[1] * (rank.dim() - 1)).expand(rank.shape)
        rows = torch.zeros((num_selected + 1, *rank.shape[1:]), dtype=torch.long, device=rank.device)
        return rows.scatter(0, rank, entries)[:num_selected]


def _start(log_odds: Tensor, degree: int) -> Tensor:
    """The coefficients of the polynomial 1, log-scaled, (degree + 1, *)."""
    one = torch.full((degree + 1, *log_odds.shape[:-1]), _LOG_ZERO, dtype=log_odds.dtype, device=log_odds.device)
    one[0] = 0.0
    return one


def _times_linear(polynomial: Tensor, log_odd: Tensor) -> Tensor:
    """The product of a polynomial with 1 + p x, cut off at its degree."""
    kept, taken = polynomial[1:], polynomial[:-1] + log_odd
    # logaddexp is faster, but its second derivative is NaN where its arguments lie far apart.
    both = torch.stack([kept, taken]).logsumexp(0) if torch.is_grad_enabled() else torch.logaddexp(kept, taken)
    return torch.cat([polynomial[:1], both])


def _prefixes(floored: Tensor, degree: int) -> list[Tensor]:
    """The products of the first 0, 1, ..., k factors."""
    products = [_start(floored, degree)]
    for log_odd in floored.unbind(-1):
        products.append(_times_linear(products[-1], log_odd))
    return products


def _floored(log_odds: Tensor) -> Tensor:
    return torch.where(log_odds == -torch.inf, _LOG_ZERO, log_odds)


def _unfloored(log_value: Tensor) -> Tensor:
    return torch.where(log_value < _LOG_ZERO / 2, -torch.inf, log_value)


def _check_num_selected(log_odds: Tensor, num_selected: int, least: int = 0) -> None:
    k = log_odds.shape[-1]
    if isinstance(num_selected, bool) or not isinstance(num_selected, int) or not least <= num_selected <= k:
        raise ValueError(f"num_selected must be an int from {least} to k = {k}, got {num_selected!r}")
