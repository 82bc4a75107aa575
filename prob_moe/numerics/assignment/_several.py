"""The best assignment with several distinct experts per row: successive shortest paths, as with one (`_augment`).

The exchange cost W[a, b] is the least S_ia − S_ib over the rows that hold a and do not hold b. Every row holds the
experts that are best for it at the current prices, so W[a, b] − v_a + v_b >= 0, and a shortest path from an overfull
expert to one with room keeps it so. A path that uses a row twice does so at ties only, and leaves it with distinct
experts.
"""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy, largest, lower_to_zero, select
from prob_moe.numerics.assignment._augment import _shortest_path, place_free_slots
from prob_moe.numerics.assignment._distances import exchanges
from prob_moe.numerics.assignment._solver import INFEASIBLE, OPTIMAL, present_rows, status_before

SAMPLE, SWEEPS = 16, 8  # rows per expert on which the first prices are found, and how often


@kernel
def _outside(scores: np.ndarray, prices: np.ndarray, i: int, j: int, picks: int, best: np.ndarray) -> float:
    """The value S − v of the ``picks``-th best expert of row i other than j; −inf where there are fewer."""
    best[:picks] = -np.inf
    for other in range(prices.size):
        value = scores[i, other] - prices[other]
        if other != j and value > best[picks - 1]:
            place = picks - 1
            while place > 0 and best[place - 1] < value:
                best[place] = best[place - 1]
                place -= 1
            best[place] = value
    return float(best[picks - 1])


@kernel
def first_prices(
    scores: np.ndarray, rows: np.ndarray, picks: np.ndarray, slots: np.ndarray, floor: float
) -> np.ndarray:
    """Prices that nearly balance the experts on a sample of the rows: each in turn lets its share through."""
    k = scores.shape[1]
    prices = np.zeros(k)
    sample = rows[:: max(1, rows.size // (SAMPLE * k))]
    bids, best = np.empty(sample.size), np.empty(max(1, largest(picks)))
    for _ in range(SWEEPS):
        change, scale = 0.0, 0.0
        for j in range(k):
            for place in range(sample.size):
                i = sample[place]
                bids[place] = scores[i, j] - _outside(scores, prices, i, j, picks[i], best) if picks[i] > 0 else -np.inf
                if not bids[place] > -np.inf:  # also where there is nothing else to hold
                    bids[place] = -np.inf
            target = int(slots[j] * sample.size / rows.size + 0.5)
            wanted = floor if target >= sample.size else select(bids, sample.size - 1 - target)
            wanted = max(wanted, floor)
            if abs(wanted) < np.inf:
                change = max(change, abs(wanted - prices[j]))
                scale = max(scale, abs(wanted))
                prices[j] = wanted
        if change <= 0.02 * scale:
            break
    if floor > -np.inf:
        lower_to_zero(prices)
    return prices


@kernel
def _hold_best(scores: np.ndarray, rows: np.ndarray, picks: np.ndarray, prices: np.ndarray, hold: np.ndarray) -> bool:
    """Give each row its best experts at these prices; False if a row allows too few."""
    for i in rows:
        for _ in range(picks[i]):
            best, best_value = -1, -np.inf
            for j in range(prices.size):
                if not hold[i, j] and scores[i, j] - prices[j] > best_value:
                    best, best_value = j, scores[i, j] - prices[j]
            if best < 0:
                return False
            hold[i, best] = True
    return True


@kernel
def _offer(scores: np.ndarray, hold: np.ndarray, i: int, a: int, costs: np.ndarray, movers: np.ndarray) -> None:
    """Let row i compete for the cheapest moves out of a, which it holds."""
    for b in range(scores.shape[1]):
        if not hold[i, b] and np.float64(scores[i, a]) - scores[i, b] < costs[a, b]:
            costs[a, b] = np.float64(scores[i, a]) - scores[i, b]
            movers[a, b] = i


@kernel
def _swap(
    scores: np.ndarray,
    hold: np.ndarray,
    i: int,
    old: np.ndarray,
    members: list[list[int]],
    costs: np.ndarray,
    movers: np.ndarray,
) -> None:
    """Bring the exchange costs up to date after row i left its ``old`` experts for those that it holds now."""
    k = scores.shape[1]
    for a in range(k):
        if not old[a]:
            continue
        for b in range(k):
            if movers[a, b] != i:
                continue
            costs[a, b], movers[a, b] = np.inf, -1
            for other in members[a]:
                if not hold[other, b] and np.float64(scores[other, a]) - scores[other, b] < costs[a, b]:
                    costs[a, b] = np.float64(scores[other, a]) - scores[other, b]
                    movers[a, b] = other
    for a in range(k):
        if hold[i, a]:
            _offer(scores, hold, i, a, costs, movers)


@kernel
def balance(
    scores: np.ndarray,
    rows: np.ndarray,
    hold: np.ndarray,
    slots: np.ndarray,
    prices: np.ndarray,
    costs: np.ndarray,
    movers: np.ndarray,
) -> bool:
    """Turn the best holdings at ``prices`` into the best within ``slots``, in place; False where there are none.

    Free slots are held by one more node, k; a slot may lie free at an expert of price 0 only.

    :param costs: (k + 1, k + 1) out, exchange costs; :param movers: (k + 1, k + 1) out, the rows that attain them.
    """
    k = scores.shape[1]
    loads = np.zeros(k, np.int64)
    members = [[-1 for _ in range(0)] for _ in range(k)]
    costs[:] = np.inf
    movers[:] = -1
    for i in rows:
        for a in range(k):
            if hold[i, a]:
                loads[a] += 1
                members[a].append(i)
                _offer(scores, hold, i, a, costs, movers)
    spare = slots.sum() - loads.sum()
    potentials, free, excess = place_free_slots(spare, loads, slots, prices, costs)
    size = excess.size
    distance, previous, done = np.empty(size), np.empty(size, np.int64), np.empty(size, np.bool_)
    path, moved = np.empty(size, np.int64), np.empty(size, np.int64)
    while largest(excess) > 0:
        end = _shortest_path(costs, potentials, excess, distance, previous, done)
        if end < 0:
            return False
        length = 0
        b = end
        while previous[b] >= 0:
            path[length] = b
            length += 1
            b = previous[b]
        path[length] = b
        excess[b] -= 1
        excess[end] += 1
        count = 0
        old = np.zeros((length, k), np.bool_)
        for step in range(length):
            a, b = path[step + 1], path[step]
            if a == k:
                free[b] += 1
            elif b == k:
                free[a] -= 1
            else:
                i = movers[a, b]
                seen = False
                for other in range(count):
                    seen = seen or moved[other] == i
                if not seen:
                    moved[count] = i
                    copy(hold[i], old[count])
                    count += 1
        for step in range(length):
            a, b = path[step + 1], path[step]
            if a < k and b < k:
                i = movers[a, b]
                hold[i, a] = False
                hold[i, b] = True
                members[a].remove(i)
                members[b].append(i)
        for other in range(count):
            _swap(scores, hold, moved[other], old[other], members, costs, movers)
        if spare > 0:
            for a in range(k):
                costs[a, k] = 0.0 if free[a] > 0 else np.inf
    return True


@kernel
def solve_several(
    scores: np.ndarray,
    mask: np.ndarray,
    slots: np.ndarray,
    assignment: np.ndarray,
    costs: np.ndarray,
    distances: np.ndarray,
    prices: np.ndarray,
) -> int:
    """As ``solve_one`` for m experts per row; ``assignment`` (m, n) ascends within a row."""
    n, k = scores.shape
    picks = assignment.shape[0]
    rows = present_rows(mask, n)
    assignment[:] = -1
    status = status_before(scores, rows, picks, slots)
    if status != OPTIMAL:
        return status
    hold = np.zeros((n, k), np.bool_)
    edges, movers = np.empty((k + 1, k + 1)), np.empty((k + 1, k + 1), np.int64)
    if rows.size > 0:
        wanted = np.full(n, picks)
        floor = 0.0 if rows.size * picks < slots.sum() else -np.inf
        start = first_prices(scores, rows, wanted, slots, floor)
        if not _hold_best(scores, rows, wanted, start, hold):
            return INFEASIBLE
        if not balance(scores, rows, hold, slots, start, edges, movers):
            return INFEASIBLE
    else:
        edges[:] = np.inf
    loads = np.zeros(k, np.int64)
    for i in rows:
        place = 0
        for j in range(k):
            if hold[i, j]:
                assignment[place, i] = j
                place += 1
                loads[j] += 1
    exchanges(edges, loads, slots, costs, distances, prices)
    return OPTIMAL
