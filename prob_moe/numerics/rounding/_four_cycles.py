"""Compiled kernel of dependent rounding, first part: rows stream through a table of pairs of experts.

Two rows that both have entries strictly between 0 and 1 at experts a and b hold a cycle of four. Along it the entries
alternately gain and lose the same amount, which keeps all row and column sums; the amount is the largest possible in
one of the two directions, with the probabilities that make its mean zero. So some entry becomes 0 or 1, and the cycle
opens. ``table[a, b]`` names the open row that holds both, so a cycle is found without a search. What is left shares no
pair: at most k (k + 1) / 2 short rows, which the forest of ``_forest`` decides.

"Dropped" is column k and makes up what a row lacks to an integer, so a row with one entry left is decided.
"""

import numpy as np

from prob_moe.numerics._compiled import kernel

NEGLIGIBLE = 1e-12  # rounding of a row's sum; a drop probability below it is none


@kernel
def _moved(value: float, step: float) -> float:
    """The entry after a step, exactly 1 where that was all the room that it had (exactly 0 comes by itself)."""
    return 1.0 if step == 1.0 - value else value + step


@kernel(fastmath={"reassoc", "nsz"})
def _row_sum(row: np.ndarray, sums: np.ndarray) -> float:
    """The sum of a row, which is added to the column sums, too."""
    total = 0.0
    for j in range(row.size):
        total += row[j]
        sums[j] += row[j]
    return total


@kernel
def _leave(
    row: int,
    column: int,
    owner: np.ndarray,
    entries: np.ndarray,
    columns: np.ndarray,
    length: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    """Take an entry that is 0 or 1 by now out of its open row, and its pairs out of the table."""
    if entries[row, column] >= 1.0 and column < out.shape[1]:
        out[owner[row], column] = True
    last = length[row] - 1
    length[row] = last
    for place in range(last):
        other = columns[row, place]
        if other == column:  # the last one takes its place
            other = columns[row, place] = columns[row, last]
        table[column, other] = table[other, column] = -1


@kernel
def stream(
    r: np.ndarray,
    order: np.ndarray,
    uniforms: np.ndarray,
    sums: np.ndarray,
    owner: np.ndarray,
    entries: np.ndarray,
    columns: np.ndarray,
    length: np.ndarray,
    out: np.ndarray,
) -> int:
    """Round the rows of r (n, k) until no two open rows share two experts.

    ``owner`` (s,) tells whose row each slot holds, −1 for none; its entries are ``entries[slot, column]`` for the first
    ``length[slot]`` of ``columns[slot]``. Fills ``sums`` (k + 1,), the column sums, and ``out`` (n, k), the selected.
    Returns how many uniforms are used up; each is overwritten by the probability that it was compared with.
    """
    k = r.shape[1]
    table = np.full((k + 1, k + 1), -1, dtype=np.int32)
    free = np.empty(owner.size, dtype=np.int64)
    for slot in range(owner.size):
        free[slot] = owner.size - 1 - slot
    num_free = owner.size
    mine = np.empty(k + 1)  # the new row: its entries and their columns, outside the table until they are all in
    places = np.empty(k + 1, dtype=np.int64)
    owner[:] = -1
    out[:] = False
    sums[:] = 0.0
    used = 0
    for i in order:
        total = _row_sum(r[i], sums)
        dropped = np.ceil(total) - total
        if dropped <= NEGLIGIBLE or (total > 1.0 and dropped >= 1.0 - NEGLIGIBLE):
            dropped = 0.0
        sums[k] += dropped
        count = 0
        for j in range(k + 1):
            entry = r[i, j] if j < k else dropped
            place = 0
            while place < count and 0.0 < entry < 1.0:
                a = places[place]
                row = table[a, j]
                if row < 0:
                    place += 1
                    continue
                beside, across, corner = mine[place], entries[row, a], entries[row, j]
                gain = min(min(1.0 - entry, beside), min(1.0 - across, corner))
                loss = min(min(entry, 1.0 - beside), min(across, 1.0 - corner))
                probability = loss / (gain + loss)
                step = gain if uniforms[used] < probability else -loss
                uniforms[used] = probability
                used += 1
                entry = _moved(entry, step)
                beside = _moved(beside, -step)
                across = _moved(across, step)
                corner = _moved(corner, -step)
                entries[row, a], entries[row, j] = across, corner
                across_leaves = across <= 0.0 or across >= 1.0
                corner_leaves = corner <= 0.0 or corner >= 1.0
                if across_leaves or corner_leaves:
                    if across_leaves:
                        _leave(row, a, owner, entries, columns, length, table, out)
                    if corner_leaves:
                        _leave(row, j, owner, entries, columns, length, table, out)
                    if length[row] <= 1:
                        if length[row] == 1 and columns[row, 0] < k:
                            out[owner[row], columns[row, 0]] = entries[row, columns[row, 0]] > 0.5
                        owner[row] = -1
                        free[num_free] = row
                        num_free += 1
                mine[place] = beside
                if beside <= 0.0 or beside >= 1.0:
                    if beside >= 1.0 and a < k:
                        out[i, a] = True
                    count -= 1
                    mine[place], places[place] = mine[count], places[count]
            if 0.0 < entry < 1.0:
                mine[count], places[count] = entry, j
                count += 1
            elif entry >= 1.0 and j < k:
                out[i, j] = True
        if count == 1 and places[0] < k:
            out[i, places[0]] = mine[0] > 0.5
        if count > 1:
            num_free -= 1
            row = free[num_free]
            owner[row] = i
            length[row] = count
            for place in range(count):
                a = places[place]
                entries[row, a] = mine[place]
                columns[row, place] = a
                for before in range(place):
                    table[a, places[before]] = table[places[before], a] = row
    return used
