"""All-pairs shortest paths of dense graphs, by Floyd and Warshall, and the prices that they give."""

import numpy as np

from prob_moe.numerics._compiled import batch_kernel, kernel
from prob_moe.numerics._vectors import copy


@kernel(fastmath={"nnan", "nsz"})
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


@batch_kernel
def relax_all(distances: np.ndarray) -> None:
    """``relax`` for every graph of a batch (b, k, k)."""
    for graph in distances:
        relax(graph)


@kernel
def price(distances: np.ndarray, loads: np.ndarray, capacity: np.ndarray, prices: np.ndarray) -> None:
    """Write into ``prices`` (k,) the distance of each expert to its nearest free slot, or else to its root."""
    k = loads.size
    for a in range(k):
        nearest = np.inf
        for b in range(k):
            if loads[b] < capacity[b]:
                nearest = min(nearest, distances[a, b])
        if nearest == np.inf:
            # The root is the first expert with which exchange is possible both ways; at the latest, a itself.
            root = 0
            while distances[a, root] == np.inf or distances[root, a] == np.inf:
                root += 1
            nearest = distances[a, root]
        prices[a] = nearest


@kernel
def exchanges(
    edges: np.ndarray,
    loads: np.ndarray,
    capacity: np.ndarray,
    costs: np.ndarray,
    distances: np.ndarray,
    prices: np.ndarray,
) -> None:
    """What follows from an optimum: exchange costs and their shortest paths (k, k), and shadow prices (k,), all out.

    :param edges: exchange costs of its rows, (k + 1, k + 1); a free slot lowers those of its expert to 0.
    """
    k = loads.size
    for a in range(k):
        for b in range(k):
            costs[a, b] = min(edges[a, b], 0.0) if loads[a] < capacity[a] else edges[a, b]
        costs[a, a] = 0.0
        copy(costs[a], distances[a])
    relax(distances)
    price(distances, loads, capacity, prices)


@batch_kernel
def price_all(distances: np.ndarray, loads: np.ndarray, capacity: np.ndarray, prices: np.ndarray) -> None:
    """``price`` for every graph of a batch (b, k, k), with slots (b, k)."""
    for graph in range(len(distances)):
        price(distances[graph], loads[graph], capacity[graph], prices[graph])
