"""All-pairs shortest paths of dense graphs, by Floyd and Warshall."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def relax(distances: np.ndarray) -> None:
    """Shortest distances from edge costs (k, k) in place; what rounding makes of a cycle of length 0 is set to 0."""
    k = distances.shape[0]
    for a in range(k):
        distances[a, a] = 0.0
    for j in range(k):
        for a in range(k):
            first = distances[a, j]
            if a == j or first == np.inf:
                continue
            for b in range(k):
                through = first + distances[j, b]
                distances[a, b] = through if through < distances[a, b] else distances[a, b]
            distances[a, a] = 0.0


@njit(cache=True, nogil=True)
def relax_all(distances: np.ndarray) -> None:
    """``relax`` for every graph of a batch (b, k, k)."""
    for graph in distances:
        relax(graph)
