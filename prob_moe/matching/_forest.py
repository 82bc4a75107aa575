"""Compiled kernel of dependent rounding: rows stream through a forest of fractional entries.

Nodes are the experts (columns, 0..k−1), "dropped" (column k) and slots for the rows that are still open; an edge is an
entry strictly between 0 and 1. The forest is rooted, an edge is stored at its lower end: ``parent[x]`` and ``up[x]``,
the entry's value. A new edge either joins two trees or closes a cycle. Along a cycle the entries alternately gain and
lose the same amount, which keeps all row and column sums; the amount is the largest possible in one of the two
directions, with the probabilities that make its mean zero. So some entry becomes 0 and the cycle opens. A row
with one entry left is decided. Each open row has two entries or more, hence at most k rows are open at a time.

Column sums that are not integers get their missing part from one more row, the slack, whose entries make up
the difference to the next integer. Then all sums are integers and cycles alone decide everything.
Gandhi, Khuller, Parthasarathy & Srinivasan 2006, "Dependent rounding and its applications", section 2.
"""

import numpy as np

from prob_moe.matching._compiled import batch_kernel, kernel

NEGLIGIBLE = 1e-12  # rounding of a row's sum; a drop probability below it is none


@kernel
def _make_root(x: int, parent: np.ndarray, up: np.ndarray) -> None:
    """Turn the path from x to its root around."""
    above = parent[x]
    value = up[x]
    parent[x] = -1
    while above >= 0:
        next_above, next_value = parent[above], up[above]
        parent[above], up[above] = x, value
        x, above, value = above, next_above, next_value


@kernel
def _insert(
    row: int,
    column: int,
    entry: float,
    is_slack: bool,
    uniforms: np.ndarray,
    used: int,
    parent: np.ndarray,
    up: np.ndarray,
    degree: np.ndarray,
    owner: np.ndarray,
    out: np.ndarray,
) -> int:
    """Add an entry of the row, the root of its tree; returns how many uniforms are used up by then.

    ``degree`` counts a row's entries, those to come included. A uniform that was used is overwritten by the probability
    that it was compared with.
    """
    top = column
    while parent[top] >= 0:
        top = parent[top]
    if top != row:
        _make_root(column, parent, up)
        parent[column], up[column] = row, entry
        return used

    # The cycle row → column → ... → row. Going up, columns hang on entries that lose when the new entry gains.
    gain, loss = np.inf, entry
    x = column
    last = column
    while x != row:
        gain = min(gain, up[x])
        last = x
        x = parent[x]
        if x != row:
            loss = min(loss, up[x])
            x = parent[x]
    if is_slack:  # elsewhere 1 − entry is at least the row's other entry on the cycle
        gain = min(gain, 1.0 - entry)
        loss = min(loss, 1.0 - up[last])
    probability = loss / (gain + loss)
    step = gain if uniforms[used] < probability else -loss
    uniforms[used] = probability
    used += 1

    entry += step
    x = column
    while x != row:
        lower, middle = x, parent[x]
        up[lower] -= step
        if middle == row:
            break
        up[middle] += step
        x = parent[middle]
        if up[lower] <= 0.0 or up[middle] <= 0.0:
            degree[middle] -= 1
            decided = degree[middle] == 1
            if decided:
                out[owner[middle]] = x if up[lower] <= 0.0 else lower
                owner[middle] = -1
            if decided or up[lower] <= 0.0:
                parent[lower] = -1
            if decided or up[middle] <= 0.0:
                parent[middle] = -1
    alive = entry > 0.0
    if is_slack:
        alive = alive and entry < 1.0 - NEGLIGIBLE
        if up[last] <= 0.0 or up[last] >= 1.0 - NEGLIGIBLE:
            parent[last] = -1
    else:
        if up[last] <= 0.0:
            parent[last] = -1
            degree[row] -= 1
        if not alive:
            degree[row] -= 1
        if degree[row] == 1:
            out[owner[row]] = column if alive else last
            owner[row] = -1
            parent[last] = -1
            alive = False
    if alive:
        _make_root(column, parent, up)
        parent[column], up[column] = row, entry
    return used


@kernel
def _round_one(r: np.ndarray, order: np.ndarray, uniforms: np.ndarray, tolerance: float, out: np.ndarray) -> None:
    """Round the rows of r (n, k) in the given order; out[i] is a column, k for "dropped"."""
    k = r.shape[1]
    nodes = 2 * k + 3  # k + 1 columns; at most k open rows, the new one and the slack
    slack = nodes - 1
    parent = np.full(nodes, -1)
    up = np.zeros(nodes)
    degree = np.zeros(nodes, dtype=np.int64)
    owner = np.full(nodes, -1)
    sums = np.zeros(k + 1)
    used = 0
    slot = k + 1
    for i in order:
        count = 0
        sole = k
        dropped = 1.0
        for j in range(k):
            if r[i, j] > 0.0:
                sums[j] += r[i, j]
                dropped -= r[i, j]
                count += 1
                sole = j
        if dropped > NEGLIGIBLE:
            sums[k] += dropped
            count += 1
            sole = k
        if count == 1:
            out[i] = sole
            continue
        while owner[slot] >= 0:
            slot = slot + 1 if slot + 1 < slack else k + 1
        owner[slot] = i
        degree[slot] = count
        for j in range(k):
            if r[i, j] > 0.0:
                used = _insert(slot, j, r[i, j], False, uniforms, used, parent, up, degree, owner, out)
        if dropped > NEGLIGIBLE:
            used = _insert(slot, k, dropped, False, uniforms, used, parent, up, degree, owner, out)

    for j in range(k + 1):
        missing = np.ceil(sums[j]) - sums[j]
        if tolerance * max(1.0, sums[j]) < missing < 1.0 - tolerance * max(1.0, sums[j]):
            used = _insert(slack, j, missing, True, uniforms, used, parent, up, degree, owner, out)

    # What is still open differs from 0 or 1 by the rounding of sums only: take each row's largest entry.
    largest = np.zeros(nodes)
    for x in range(nodes):
        row = max(x, parent[x])
        if parent[x] >= 0 and row != slack and up[x] > largest[row]:
            largest[row] = up[x]
            out[owner[row]] = min(x, parent[x])


@batch_kernel
def round_batch(r: np.ndarray, order: np.ndarray, uniforms: np.ndarray, tolerance: float, out: np.ndarray) -> None:
    """All matrices of a batch: r (b, n, k), order (b, n), uniforms (b, (n + 1) k) in; columns (b, n) out."""
    for b in range(r.shape[0]):
        _round_one(r[b], order[b], uniforms[b], tolerance, out[b])
