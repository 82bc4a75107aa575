"""Where sharp maxima may be: an expert that describes a few rows, looked for before anything is fitted."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.linear import weighted_least_squares
from prob_moe.sklearn.problem import Problem

#: Predictors through random rows are looked at as long as there are fewer residuals than this.
RESIDUALS = 2**22

#: Of the best so many times as many as are wanted are laid anew through the rows that they describe, so often.
REFINED, TIMES = 10, 3

#: Those that share more than this of the rows that either of them describes are one.
SAME = 0.7


class _Units(NamedTuple):
    """Per unit: frequency, rows, the target less the offset and the log-likelihood to be beaten, on its scale."""

    problem: Problem
    y: Tensor
    rows: Tensor
    to_beat: Tensor


def sharp_members(problem: Problem, log_likelihoods: Tensor, count: int, generator: np.random.RandomState) -> Tensor:
    r"""
    Where numbers are rounded, many predictors pass closely by some rows, each found by few random starts. So thousands
    are laid through p random units each and judged by what the likelihood gains where the nearest m units have a normal
    law of their own, the best m for each, with an approximate share of m / n:

    .. math:: \sum_{i \le m} \bigl(\log N(r_i; 0, s_m) - f_i\bigr) + m \log\frac{m}{n} + (n - m)\log\frac{n - m}{n}.

    :param log_likelihoods: f, of the units under a mixture with fewer experts, nats, (units,).
    :param count: the most that are wanted.
    :returns: the units near the best predictors that do not share most of their units, bool, (count or fewer, units);
        none where the family has no scale.
    """
    family = problem.family
    y = family.on_predictor_scale(problem.target)
    num_units = len(problem.unit_weights)
    if y is None or not family.num_dispersions or num_units < 3 or not count:
        return torch.zeros(0, num_units, dtype=torch.bool)
    to_beat = log_likelihoods + problem.per_unit(family.log_slope(problem.target))
    units = _Units(problem, y - problem.offset, problem.per_unit(torch.ones_like(y)), to_beat)
    tried = max(count, min(RESIDUALS // len(y), 200 * count))
    size = min(problem.layout.num_columns, num_units)
    waiting = generator.standard_exponential((tried, num_units)) / problem.unit_weights.numpy()
    chosen = torch.from_numpy(np.argpartition(waiting, size - 1, axis=1)[:, :size].copy())
    members = torch.zeros(tried, num_units, dtype=torch.bool).scatter_(1, chosen, True)
    gains, members = _nearest(units, members)
    for _ in range(TIMES):
        best = gains.argsort(descending=True, stable=True)[: REFINED * count]
        gains, members = gains[best], members[best]
        again, nearest = _nearest(units, members)
        better = again > gains
        gains = torch.where(better, again, gains)
        members = torch.where(better.unsqueeze(-1), nearest, members)
    return _different(members[gains.argsort(descending=True, stable=True)], count)


def _nearest(units: _Units, members: Tensor) -> tuple[Tensor, Tensor]:
    """What is gained near the predictors through ``members``, (R,), and by which units, (R, units)."""
    problem = units.problem
    rows = members.double() if problem.units is None else members[:, problem.units].double()
    location = weighted_least_squares(problem.columns, units.y, rows, torch.full((len(rows),), problem.ridge).double())
    squares = problem.per_unit((units.y - location @ problem.columns.mT).square()) / units.rows
    squares, order = squares.sort(dim=-1, stable=True)
    weights = problem.unit_weights[order]
    count, share = (weights * units.rows[order]).cumsum(-1), weights.cumsum(-1)
    log_scale = ((weights * units.rows[order] * squares).cumsum(-1) / count).clamp(min=1e-300).log() / 2
    normal = count * (-log_scale - math.log(2 * math.pi * math.e) / 2)
    total = problem.unit_weights.sum()
    rest = (total - share).clamp(min=0)
    prior = torch.special.xlogy(share, share / total) + torch.special.xlogy(rest, rest / total)
    gains = normal + prior - (weights * units.to_beat[order]).cumsum(-1)
    # An expert of more than half of the rows is found from random starts; one below the floor is not looked for.
    gains = gains.masked_fill((log_scale < problem.floors[0] + math.log(1.05)) | (share > total / 2), -torch.inf)
    gain, place = gains.max(-1)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return gain, rank <= place.unsqueeze(-1)


def _different(members: Tensor, count: int) -> Tensor:
    """The first ones that do not share most of their units."""
    kept: list[int] = []
    sizes = members.double().sum(-1)
    for candidate in range(len(members)):
        shared = members[kept].double() @ members[candidate].double()
        if not bool((shared > SAME * (sizes[kept] + sizes[candidate] - shared)).any()):
            kept.append(candidate)
            if len(kept) == count:
                break
    return members[kept]
