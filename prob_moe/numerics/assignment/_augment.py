"""Successive shortest augmenting paths on the exchange graph of the experts.

Nodes are the k experts and, where slots stay free, one more node that holds them. The edge a → b costs
W[a, b] = min over rows i at a of S_ia − S_ib: the least loss for which some row moves from a to b. Every row sits at
an expert that is best for it at the current prices, so the reduced costs W[a, b] − v_a + v_b are never negative and
Dijkstra's algorithm finds the cheapest way from an overfull expert to one with room. Moving one row along every edge
of that path keeps the invariant; when nothing is overfull, the assignment is optimal (Ahuja, Magnanti & Orlin 1993,
§9.7).
"""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy, largest


@kernel
def build_exchange(
    scores: np.ndarray, rows: np.ndarray, assignment: np.ndarray, costs: np.ndarray, movers: np.ndarray
) -> None:
    """Fill ``costs`` with W over ``rows`` and ``movers`` with the row that attains each minimum."""
    k = scores.shape[1]
    for i in rows:
        enter(scores, i, assignment[i], costs, movers, k)


@kernel
def enter(scores: np.ndarray, i: int, a: int, costs: np.ndarray, movers: np.ndarray, k: int) -> None:
    """Let row ``i`` at expert ``a`` compete for the cheapest move out of ``a``."""
    own = np.float64(scores[i, a])
    for b in range(k):
        cost = own - scores[i, b]
        if cost < costs[a, b] and b != a:
            costs[a, b] = cost
            movers[a, b] = i


@kernel
def _leave(scores: np.ndarray, i: int, a: int, members: np.ndarray, costs: np.ndarray, movers: np.ndarray) -> None:
    """Find the cheapest moves out of ``a`` again that row ``i`` offered, among the ``members`` that remain."""
    k = scores.shape[1]
    lost, bounds = np.empty(k, np.int64), np.empty(k)
    num_lost = 0
    for b in range(k):
        if movers[a, b] == i:
            lost[num_lost] = b
            bounds[num_lost] = costs[a, b]  # nothing cheaper was there before, so a search may end at an equal
            num_lost += 1
            costs[a, b] = np.inf
            movers[a, b] = -1
    if num_lost <= 2:  # read single scores rather than rows
        for index in range(num_lost):
            b = lost[index]
            for other in members:
                cost = np.float64(scores[other, a]) - scores[other, b]
                if cost < costs[a, b]:
                    costs[a, b] = cost
                    movers[a, b] = other
                    if cost <= bounds[index]:
                        break
        return
    for block in range(0, members.size, 16):
        for other in members[block : block + 16]:
            enter(scores, other, a, costs, movers, k)
        missing = 0
        for index in range(num_lost):
            missing += costs[a, lost[index]] > bounds[index]
        if missing == 0:
            break


@kernel
def _shortest_path(
    costs: np.ndarray,
    prices: np.ndarray,
    excess: np.ndarray,
    distance: np.ndarray,
    previous: np.ndarray,
    done: np.ndarray,
) -> int:
    """Dijkstra: the nearest node with room from all overfull ones, or -1; ``prices`` rise until the path is tight."""
    size = prices.size
    for a in range(size):
        distance[a] = 0.0 if excess[a] > 0 else np.inf
        previous[a] = -1
        done[a] = False
    while True:
        a, nearest = -1, np.inf
        for b in range(size):
            if not done[b] and distance[b] < nearest:
                a, nearest = b, distance[b]
        if a < 0:
            return -1
        if excess[a] < 0:
            break
        done[a] = True
        base = nearest - prices[a]
        for b in range(size):
            reached = max(base + costs[a, b] + prices[b], nearest)
            if reached < distance[b] and not done[b]:
                distance[b] = reached
                previous[b] = a
    for b in range(size):
        if distance[b] < nearest:
            prices[b] += nearest - distance[b]
    return a


@kernel
def place_free_slots(
    spare: int, loads: np.ndarray, capacity: np.ndarray, prices: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin with as many as possible of ``spare`` free slots at the experts, the rest at node k, which moves them.

    :param costs: (k + 1, k + 1) exchange costs, whose last row and column are written.
    :return: potentials of the nodes; free slots at each expert, at price 0 only, or the invariant would fail; and what
        each node has too much. Node k is there where there are spare slots.
    """
    k = loads.size
    size = k + 1 if spare > 0 else k
    potentials = np.zeros(size)
    copy(prices, potentials[:k])
    free = np.zeros(k, np.int64)
    excess = np.zeros(size, np.int64)
    for a in range(k):
        if spare > 0 and prices[a] == 0.0:
            free[a] = max(capacity[a] - loads[a], 0)
        excess[a] = loads[a] + free[a] - capacity[a]
    if spare > 0:
        excess[k] = spare
        for a in range(k):
            excess[k] -= free[a]
            costs[k, a] = 0.0
            costs[a, k] = 0.0 if free[a] > 0 else np.inf
    return potentials, free, excess


@kernel
def augment(
    scores: np.ndarray,
    rows: np.ndarray,
    assignment: np.ndarray,
    capacity: np.ndarray,
    prices: np.ndarray,
    costs: np.ndarray,
    movers: np.ndarray,
) -> bool:
    """Turn the best assignment at ``prices`` into the best one within capacity; False where there is none.

    :param assignment: (n,), each of ``rows`` at an expert that maximises S_ij − v_j; changed in place.
    :param capacity: (k,), slots of every expert.
    :param prices: (k,), at least 0 where slots stay free in total; changed in place.
    :param costs: (k + 1, k + 1) exchange costs of that assignment, with ``movers``; kept up to date.
    """
    k = scores.shape[1]
    slots = capacity.sum() - rows.size  # that stay free; they move between experts through node k at no cost
    loads = np.zeros(k, np.int64)
    for i in rows:
        loads[assignment[i]] += 1
    potentials, free, excess = place_free_slots(slots, loads, capacity, prices, costs)
    if largest(excess) <= 0:
        return True

    start = np.zeros(k + 1, np.int64)  # members[start[a]:start[a] + loads[a]] are the rows at a; a path needs one spare
    for a in range(k):
        start[a + 1] = start[a] + max(loads[a], capacity[a]) + 1
    members = np.empty(start[k], np.int64)
    place = np.empty(assignment.size, np.int64)
    loads[:] = 0
    for i in rows:
        a = assignment[i]
        place[i] = start[a] + loads[a]
        members[place[i]] = i
        loads[a] += 1

    size = excess.size
    distance = np.empty(size)
    previous = np.empty(size, np.int64)
    done = np.empty(size, np.bool_)
    feasible = True
    while largest(excess) > 0:
        end = _shortest_path(costs, potentials, excess, distance, previous, done)
        if end < 0:
            feasible = False
            break
        amount = -excess[end]  # free slots move in bulk, rows one by one
        b = end
        while previous[b] >= 0:
            a = previous[b]
            amount = min(amount, 1 if a < k and b < k else (free[a] if b == k else amount))
            b = a
        amount = min(amount, excess[b])
        excess[b] -= amount
        excess[end] += amount

        b = end
        while previous[b] >= 0:
            a = previous[b]
            if a == k:
                free[b] += amount
                costs[b, k] = 0.0
            elif b == k:
                free[a] -= amount
                costs[a, k] = 0.0 if free[a] > 0 else np.inf
            else:
                i = movers[a, b]
                loads[a] -= 1
                last = members[start[a] + loads[a]]
                members[place[i]] = last
                place[last] = place[i]
                place[i] = start[b] + loads[b]
                members[place[i]] = i
                loads[b] += 1
                assignment[i] = b
            b = a
        b = end
        while previous[b] >= 0:
            a = previous[b]
            if a < k and b < k:
                i = movers[a, b]
                here = members[start[a] : start[a] + loads[a]]
                _leave(scores, i, a, here, costs, movers)
                enter(scores, members[start[b] + loads[b] - 1], b, costs, movers, k)
            b = a
    base = potentials[k] if slots > 0 else 0.0
    for a in range(k):
        prices[a] = potentials[a] - base
    return feasible
