"""The best assignment of as many datapoints as the experts can hold, the others left out."""

import math

import torch

from prob_moe._transforms import without_derivative
from prob_moe.numerics._capacity import capacity_of_problems
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.numerics.assignment._solver import INFEASIBLE
from prob_moe.numerics.assignment.solve import check_arguments, raise_failure, solve_with_slots


@leaves_torch
@without_derivative
def solve_partial_assignment(
    scores: torch.Tensor,
    capacity: int | torch.Tensor,
    *,
    num_selected: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""The largest total score of the assigned datapoints, among all ways to assign as many as possible.

    With finite scores exactly min(n, kc) datapoints are assigned. One more expert, with a slot for everybody whom the
    others have no room for and a score of 0, makes it a problem for the exact solver of
    :func:`~prob_moe.numerics.solve_assignment`. Where forbidden pairs leave even more of them out, the score of that
    expert outweighs all others, so that nobody is left out without need. With ``num_selected`` = m, the same for places
    at experts, m distinct ones for each datapoint: min(nm, k min(c, n)) are taken, and m more experts share what is
    left out, since one datapoint can lose all its places.

    :param scores: (\*batch, n, k) float; -inf forbids a pair.
    :param capacity: slots per expert, a positive int or a long tensor (\*batch).
    :param num_selected: m, from 1 to k; None for one expert per datapoint.
    :param mask: (\*batch, n) bool, broadcastable; False where a datapoint is absent.
    :returns: (\*batch, n) long, on the device of ``scores``; -1 where left out or absent. With ``num_selected``
        (\*batch, m, n), ascending within a datapoint, what was left out at the end.
    :raises ValueError: for a wrong shape or dtype, a capacity that is not positive, NaN or +inf scores.

    >>> solve_partial_assignment(torch.tensor([[5.0, 4.0], [3.0, 0.0], [1.0, 1.0]]), capacity=1)
    tensor([ 1,  0, -1])
    """
    check_arguments(scores, mask)
    *batch, n, k = scores.shape
    values = scores.detach().to("cpu", torch.float64)
    present = torch.ones([*batch, n], dtype=torch.bool) if mask is None else mask.detach().cpu().expand(*batch, n)
    values = values.masked_fill(~present.unsqueeze(-1), 0.0)
    capacities = capacity_of_problems(capacity, tuple(batch))
    m = 1 if num_selected is None else num_selected
    count = present.sum(-1)
    # Several places of a datapoint are at different experts, so that an expert never has more than one for each.
    usable = capacities if m == 1 else torch.minimum(capacities, count)
    surplus = (count * m - k * usable).clamp(min=0)
    room = capacities.clamp(max=n + 1).unsqueeze(-1).expand(*batch, k)

    def solve(left_out: torch.Tensor, score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = (left_out.unsqueeze(-1) + torch.arange(m)) // m  # as equal as can be
        outside = torch.where(shares > 0, score.unsqueeze(-1), -torch.inf).double().unsqueeze(-2).expand(*batch, n, m)
        slots = torch.cat([room, shares], -1).view(math.prod(batch), k + m).numpy()
        matching, status = solve_with_slots(torch.cat([values, outside], -1), slots, present, num_selected)
        return matching.assignment, torch.from_numpy(status)

    assignment, status = solve(surplus, torch.zeros(()))
    infeasible = status == INFEASIBLE
    if bool(infeasible.any()):
        spread = values.masked_fill(values == -torch.inf, 0.0).abs().amax((-2, -1))
        others, again = solve(count * m, -1 - 2 * n * m * spread)
        event = assignment.shape[len(batch) :]
        assignment = torch.where(infeasible.view(*batch, *(1 for _ in event)), others, assignment)
        status = torch.where(infeasible, again, status)
    if bool(status.any()):
        raise_failure(status.numpy(), scores, capacities, m)
    return assignment.masked_fill(assignment >= k, -1).to(scores.device)
