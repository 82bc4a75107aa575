"""Where the search for a maximum begins: responsibilities of the experts for the units."""

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.em import maximisation_step
from prob_moe.sklearn.parameters import Parts
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.sharp import sharp_members

#: Steps of the first maximisation, where it is not exact after one.
FIRST_STEPS = 5


def starting_vectors(
    problem: Problem, restarts: int, generator: np.random.RandomState, smaller: Tensor | None = None
) -> Tensor:
    """
    Half of the starts have random responsibilities, among which every second one is a smooth function of columns and
    target; in the other half one expert has few rows, because sharp maxima are not found from random starts: p random
    rows and those that are nearest to them, or the best of many such sets of rows (:func:`.sharp_members`).

    A start depends on the table and its weights; who calls takes care that neither the order of the rows, nor writing a
    row twice instead of giving it twice the weight, makes another table.

    :param smaller: the joint log-probabilities of a mixture with one expert less, (k - 1, units), which every second
        one of the best sets of rows is added to; None for starts without.
    :returns: (restarts, D), after the first maximisation from the responsibilities.
    """
    units = len(problem.unit_weights)
    responsibilities = torch.empty(restarts, problem.num_experts, units, dtype=torch.float64)
    best = [] if smaller is None else list(sharp_members(problem, smaller.logsumexp(0), restarts // 4, generator))
    for r in range(restarts):
        if r % 4 == 3 and best:
            rest = _random(problem, generator)[1:] if smaller is None or r % 8 == 3 else smaller.softmax(0)
            responsibilities[r] = _with_members(best.pop(0), rest)
        else:
            responsibilities[r] = (_random, _sharp, _smooth, _sharp)[r % 4](problem, generator)
    flat = problem.family.flat(problem)
    layout = problem.layout
    router = torch.zeros(restarts, problem.num_experts, layout.num_router_columns, dtype=torch.float64)
    share = (responsibilities @ problem.unit_weights) / problem.unit_weights.sum()
    router[..., 0] = share.clamp(min=1e-6).log()
    location = flat.location.expand(restarts, problem.num_experts, -1, -1)
    dispersion = flat.dispersion.expand(restarts, problem.num_experts, -1)
    vectors = layout.join(Parts(location, dispersion, router))
    # Where a step is no closed form, the experts have to get somewhere before they judge the rows.
    for _ in range(FIRST_STEPS if not problem.family.has_closed_form else 1):
        vectors = maximisation_step(problem, vectors, responsibilities)
    return vectors


def _random(problem: Problem, generator: np.random.RandomState) -> Tensor:
    """Uniform on the simplex, for every unit by itself."""
    waiting = generator.standard_exponential((problem.num_experts, len(problem.unit_weights)))
    return torch.from_numpy(waiting / waiting.sum(0))


def _smooth(problem: Problem, generator: np.random.RandomState) -> Tensor:
    """A softmax of random linear functions of what router and experts see and of the target."""
    y = problem.target[0]
    y = (y - y.mean()) / y.std().clamp(min=1e-300)
    mean = problem.per_unit(torch.cat([problem.columns[:, 1:], y.unsqueeze(-1)], 1), 0)
    seen = torch.cat([problem.router_columns, mean], 1)
    slopes = torch.from_numpy(generator.standard_normal((problem.num_experts, seen.shape[1])))
    return (slopes @ seen.mT * generator.uniform(0.5, 5)).softmax(0)


def _sharp(problem: Problem, generator: np.random.RandomState) -> Tensor:
    """The first expert has p random units and the nearest ones, by residuals or by distance; the others the rest."""
    units, p = len(problem.unit_weights), problem.layout.num_columns
    weights = problem.unit_weights.numpy()
    size = min(p, units)
    chosen = generator.choice(units, size, replace=False, p=weights / weights.sum())
    most = max(size + 1, units // problem.num_experts)
    count = min(round(size * (most / size) ** generator.uniform()), units)
    member = torch.zeros(units, dtype=torch.float64)
    member[chosen] = 1.0
    rows = member if problem.units is None else member[problem.units]
    distance = problem.family.distance_to_fit(problem, rows) if generator.uniform() < 0.75 else None
    if distance is None:
        distance = torch.cdist(problem.columns, problem.columns[rows > 0]).amin(1)
    distance = problem.per_unit(distance)
    member[distance.argsort(stable=True)[:count]] = 1.0
    rest = _random(problem, generator)
    if problem.num_experts == 1:
        return torch.ones(1, units, dtype=torch.float64)
    return _with_members(member > 0, rest[1:])


def _with_members(members: Tensor, rest: Tensor) -> Tensor:
    """The first expert has the members; the others, which have positive numbers ``rest`` (k - 1, units), the rest."""
    others = (rest / rest.sum(0)).masked_fill(members, 0.0)
    return torch.cat([members.double().unsqueeze(0), others])
