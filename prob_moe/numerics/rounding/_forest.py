"""Compiled kernel of dependent rounding, second part: open rows pass through a forest of fractional entries.

Nodes are the experts (columns, 0..k−1), "dropped" (column k) and slots for the rows that are still open; an edge is an
entry strictly between 0 and 1. The forest is rooted, an edge is stored at its lower end: ``parent[x]`` and ``up[x]``,
the entry's value. A new edge either joins two trees or closes a cycle. Along a cycle the entries alternately gain and
lose the same amount, which keeps all row and column sums; the amount is the largest possible in one of the two
directions, with the probabilities that make its mean zero. So some entry becomes 0 or 1 and the cycle opens. The sum of
a row is an integer ("dropped" makes up what it lacks), so a row with one entry left is decided. Each open row has two
entries or more, hence at most k rows are open at a time.

Column sums that are not integers get their missing part from one more row, the slack, whose entries make up
the difference to the next integer. Then all sums are integers and cycles alone decide everything.
Gandhi, Khuller, Parthasarathy & Srinivasan 2006, "Dependent rounding and its applications", section 2.
"""

import numpy as np

from prob_moe.numerics._compiled import kernel


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
def _close(row: int, parent: np.ndarray, up: np.ndarray, owner: np.ndarray, out: np.ndarray) -> None:
    """Decide a row with one entry left, or none; what its value lacks to 0 or 1 is rounding."""
    k = out.shape[1]
    x = row
    if parent[row] < 0:
        for j in range(k + 1):
            if parent[j] == row:
                x = j
    if parent[x] >= 0:
        column = min(x, parent[x])
        if column < k:
            out[owner[row], column] = up[x] > 0.5
        parent[x] = -1
    owner[row] = -1


@kernel
def _insert(
    row: int,
    column: int,
    entry: float,
    uniforms: np.ndarray,
    used: int,
    parent: np.ndarray,
    up: np.ndarray,
    degree: np.ndarray,
    owner: np.ndarray,
    path: np.ndarray,
    out: np.ndarray,
) -> int:
    """Add an entry of the row, the root of its tree; returns how many uniforms are used up by then.

    ``degree`` counts a row's entries, those to come included. A uniform that was used is overwritten by the probability
    that it was compared with.
    """
    k = out.shape[1]
    top = column
    while parent[top] >= 0:
        top = parent[top]
    if top != row:
        _make_root(column, parent, up)
        parent[column], up[column] = row, entry
        return used

    # The cycle row → column → ... → row. Going up, columns hang on entries that lose when the new entry gains.
    gain, loss = 1.0 - entry, entry
    up_end = down_end = -1  # the place on the path that stops the cycle; −1 is the new entry
    length = 0
    x = column
    while x != row:
        path[length] = x
        room, other = 1.0 - up[x], up[x]
        if length % 2 == 0:
            room, other = other, room
        if room < gain:
            gain, up_end = room, length
        if other < loss:
            loss, down_end = other, length
        length += 1
        x = parent[x]
    probability = loss / (gain + loss)
    rises = uniforms[used] < probability
    uniforms[used] = probability
    used += 1
    step, end = (gain, up_end) if rises else (-loss, down_end)

    for place in range(length):
        x = path[place]
        falls = place % 2 == 0
        up[x] += -step if falls else step
        if place == end:
            up[x] = 0.0 if rises == falls else 1.0
        if up[x] <= 0.0 or up[x] >= 1.0:
            above = parent[x]
            mine = max(x, above)
            if up[x] >= 1.0 and owner[mine] >= 0 and min(x, above) < k:
                out[owner[mine], min(x, above)] = True
            parent[x] = -1
            degree[mine] -= 1
    for place in range(1, length, 2):
        if degree[path[place]] <= 1:
            _close(path[place], parent, up, owner, out)
    entry += step
    if end < 0:
        entry = 1.0 if rises else 0.0
    if 0.0 < entry < 1.0:
        _make_root(column, parent, up)
        parent[column], up[column] = row, entry
    else:
        degree[row] -= 1
        if entry >= 1.0 and owner[row] >= 0 and column < k:
            out[owner[row], column] = True
    return used


@kernel
def finish(
    owner: np.ndarray,
    entries: np.ndarray,
    columns: np.ndarray,
    length: np.ndarray,
    sums: np.ndarray,
    uniforms: np.ndarray,
    used: int,
    tolerance: float,
    out: np.ndarray,
) -> None:
    """Decide all rows that ``stream`` left open, and the slack; the arguments are what it filled."""
    k = out.shape[1]
    nodes = 2 * k + 3  # k + 1 columns; at most k open rows, the new one and the slack
    slack = nodes - 1
    parent = np.full(nodes, -1)
    path = np.empty(nodes, dtype=np.int64)
    up = np.zeros(nodes)
    degree = np.zeros(nodes, dtype=np.int64)
    whose = np.full(nodes, -1)
    row = k + 1
    for waiting in range(owner.size):
        if owner[waiting] < 0:
            continue
        while whose[row] >= 0:
            row = row + 1 if row + 1 < slack else k + 1
        whose[row] = owner[waiting]
        degree[row] = length[waiting]
        for place in range(length[waiting]):
            held = np.int64(columns[waiting, place])  # as below: ``_insert`` is compiled for one type alone
            used = _insert(row, held, entries[waiting, held], uniforms, used, parent, up, degree, whose, path, out)
        if degree[row] <= 1:
            _close(row, parent, up, whose, out)

    degree[slack] = 3 * k  # it stays open, whatever leaves it
    for j in range(k + 1):
        missing = np.ceil(sums[j]) - sums[j]
        if tolerance * max(1.0, sums[j]) < missing < 1.0 - tolerance * max(1.0, sums[j]):
            used = _insert(slack, j, missing, uniforms, used, parent, up, degree, whose, path, out)

    # What is still open differs from 0 or 1 by the rounding of sums only: each row takes as many as its sum says.
    for row in range(k + 1, slack):
        if whose[row] < 0:
            continue
        total = 0.0
        for j in range(k + 1):
            total += up[row] if parent[row] == j else (up[j] if parent[j] == row else 0.0)
        for _ in range(int(total + 0.5)):
            best, column = 0.0, -1
            for j in range(k + 1):
                x = row if parent[row] == j else j
                if (parent[row] == j or parent[j] == row) and up[x] > best:
                    best, column = up[x], j
            if column >= 0:
                up[row if parent[row] == column else column] = 0.0
                if column < k:
                    out[whose[row], column] = True
