"""Compiled kernel of dependent rounding: cycles of four while the rows stream, the forest for what they leave."""

import numpy as np

from prob_moe.numerics._compiled import batch_kernel, kernel
from prob_moe.numerics.rounding._forest import finish
from prob_moe.numerics.rounding._four_cycles import stream


@kernel(from_python=True, only_caller=True)
def round_one(r: np.ndarray, order: np.ndarray, uniforms: np.ndarray, tolerance: float, out: np.ndarray) -> None:
    """Round the rows of r (n, k), entries at most 1, in the given order; out (n, k) tells what is selected.

    Uses at most one uniform per entry of r and of the slack, the last of a row excepted: (n + 1) k.
    """
    n, k = r.shape
    slots = min(n, k * (k + 1) // 2)  # open rows have two entries or more, and share no pair of the k + 1 columns
    owner = np.empty(slots, dtype=np.int64)
    entries = np.empty((slots, k + 1))
    columns = np.empty((slots, k + 1), dtype=np.int32)
    length = np.empty(slots, dtype=np.int64)
    sums = np.empty(k + 1)
    used = stream(r, order, uniforms, sums, owner, entries, columns, length, out)
    finish(owner, entries, columns, length, sums, uniforms, used, tolerance, out)


@batch_kernel
def round_batch(r: np.ndarray, order: np.ndarray, uniforms: np.ndarray, tolerance: float, experts: np.ndarray) -> None:
    """All matrices of a batch: r (b, n, k), order (b, n), uniforms (b, (n + 1) k) in; experts (b, m, n) out.

    The experts of a row ascend, −1 after them where there are fewer than m.
    """
    selected = np.empty(r.shape[1:], np.bool_)
    experts[:] = -1
    for b in range(r.shape[0]):
        round_one(r[b], order[b], uniforms[b], tolerance, selected)
        for i in range(r.shape[1]):
            place = 0
            for j in range(r.shape[2]):
                if selected[i, j]:
                    experts[b, place, i] = j
                    place += 1
                    if place == experts.shape[1]:
                        break
