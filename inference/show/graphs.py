"""A small assignment as graphs: who is processed by whom, and what it would cost to exchange."""

from typing import Any, NamedTuple

import networkx as nx
import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution, GumbelMatching
from prob_moe.numerics import exchange_costs


class SmallDraw(NamedTuple):
    """A draw for few datapoints, by itself: its capacity is that of a batch of its size."""

    routing: AssignmentDistribution  #: of n datapoints
    value: Tensor  #: (n,), or (m, n) with several experts for each


def small_draw(logits: Tensor, like: AssignmentDistribution, capacity_factor: float) -> SmallDraw:
    """
    Draw anew for some of the datapoints of a batch.

    :param logits: router logits, (n, k).
    :param like: the procedure is its.
    """
    several: dict[str, Any] = {} if like.num_selected is None else {"num_selected": like.num_selected}
    routing = type(like)(logits.detach(), capacity_factor=capacity_factor, **several)
    return SmallDraw(routing, routing.sample())


def assignment_graph(draw: SmallDraw) -> nx.Graph:
    """
    Bipartite: nodes ``("datapoint", i)`` and ``("expert", j)``, and an edge from every datapoint to the expert, or each
    of several, that its router chose, or that processes it. Edges have ``dropped`` and ``probability``, the router's;
    experts ``load`` and ``capacity``, which is None where there is no limit.

    >>> routing = GumbelMatching(torch.zeros(4, 2), capacity=2)
    >>> graph = assignment_graph(SmallDraw(routing, torch.tensor([0, 0, 1, 1])))
    >>> sorted(graph[("expert", 1)])
    [('datapoint', 2), ('datapoint', 3)]
    """
    routing, value = draw
    graph = nx.Graph()
    capacity = None if routing.capacity is None else int(routing.capacity)
    for expert, load in enumerate(routing.loads(value).tolist()):
        graph.add_node(("expert", expert), bipartite=1, load=load, capacity=capacity)
    probabilities = routing.router_log_prob(value).exp()
    for i, entries in enumerate(value.reshape(-1, routing.num_datapoints).mT.tolist()):
        graph.add_node(("datapoint", i), bipartite=0)
        for entry, probability in zip(entries, probabilities.reshape(-1, routing.num_datapoints)[:, i].tolist()):
            chosen = ("expert", ~entry if entry < 0 else entry)
            graph.add_edge(("datapoint", i), chosen, dropped=entry < 0, probability=probability)
    return graph


def exchange_graph(draw: SmallDraw) -> nx.DiGraph:
    """
    Experts, with an edge a -> b wherever somebody could move from a to b, and its ``cost`` W[a, b] in the perturbed
    scores, see :func:`~prob_moe.numerics.exchange_costs`. Nodes have ``price``, the shadow price, ``load`` and
    ``capacity``.

    :param draw: of a :class:`~prob_moe.distributions.GumbelMatching`.
    :raises ValueError: for another procedure, which has no scores that it maximises.
    """
    routing, value = draw
    if not isinstance(routing, GumbelMatching):
        raise ValueError(f"{type(routing).__name__} is not a matching: it has no exchange graph")
    matching = routing.matching(value)
    costs = exchange_costs(matching.scores, value, routing.capacity)
    graph = nx.DiGraph()
    for expert, (price, load) in enumerate(zip(matching.prices.tolist(), routing.loads(value).tolist())):
        graph.add_node(expert, price=price, load=load, capacity=int(routing.capacity))
    for a, b in (torch.isfinite(costs) & ~torch.eye(len(costs), dtype=torch.bool)).nonzero().tolist():
        graph.add_edge(a, b, cost=float(costs[a, b]))
    return graph
