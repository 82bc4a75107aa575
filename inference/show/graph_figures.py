"""Pictures of the graphs of a small assignment."""

import networkx as nx
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.figure_style import WIDTH, expert_colors

#: experts up to which every edge of an exchange graph has its label; with more, the cheapest way out of each
LABELLED = 5
#: experts of which numbers can be read in a graph or a table of pairs
READABLE = 12


def draw_assignment(graph: nx.Graph, names: list[str]) -> Figure:
    """
    Experts above, datapoints below in the order of their experts; dashed where dropped.

    :param graph: from :func:`~inference.show.graphs.assignment_graph`.
    :param names: of the datapoints, short.
    """
    experts = [node for node, side in graph.nodes(data="bipartite") if side == 1]
    colors = expert_colors(len(experts))
    points = [node for node, side in graph.nodes(data="bipartite") if side == 0]
    expert_of = {point: next(iter(graph[point]))[1] for point in points}
    dropped = {point: next(iter(graph[point].values()))["dropped"] for point in points}
    points.sort(key=lambda point: (expert_of[point], dropped[point]))
    place = {point: (x, 0.0) for point, x in zip(points, _spread(len(points)))}
    place |= {expert: (x, 1.0) for expert, x in zip(experts, _spread(len(experts)))}
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for point, expert, edge in graph.edges(data=True):
        point, expert = sorted((point, expert))  # "datapoint" comes before "expert"
        nx.draw_networkx_edges(
            graph,
            place,
            [(point, expert)],
            ax=axis,
            edge_color="0.45" if edge["dropped"] else colors[expert[1]],
            style="--" if edge["dropped"] else "-",
            width=0.6 + 2.4 * edge["probability"],
        )
    small = 190 if len(points) <= 30 else 90
    nx.draw_networkx_nodes(
        graph,
        place,
        points,
        ax=axis,
        node_size=small,
        node_color=["white" if dropped[point] else colors[expert_of[point]] for point in points],
        edgecolors=["0.45" if dropped[point] else colors[expert_of[point]] for point in points],
    )
    labels = {point: names[point[1]] for point in points}
    for point, (x, y) in ((point, place[point]) for point in points):
        axis.text(x, y - 0.11, labels[point], ha="center", va="top", fontsize=8 if len(points) <= 30 else 6)
    nx.draw_networkx_nodes(graph, place, experts, ax=axis, node_size=420, node_color=colors, node_shape="s")
    large = 9 if len(experts) <= 10 else 6
    for expert in experts:
        load, capacity = graph.nodes[expert]["load"], graph.nodes[expert]["capacity"]
        (x, y), of = place[expert], "" if capacity is None else f"/{capacity}"
        axis.text(x, y, str(expert[1]), ha="center", va="center", fontsize=large, color="white", weight="bold")
        axis.text(x, y + 0.15, f"{load}{of}", ha="center", va="bottom", fontsize=large)
    axis.text(-0.02, 1.15, "load" if capacity is None else "load/capacity", ha="right", va="bottom", fontsize=9)
    axis.text(-0.02, 1.0, "expert", ha="right", va="center", fontsize=9)
    axis.text(-0.02, 0.0, "datapoint", ha="right", va="center", fontsize=9)
    axis.set(xlim=(-0.14, 1.02), ylim=(-0.3, 1.35))
    axis.set_axis_off()
    return figure


def draw_exchange(graph: nx.DiGraph) -> Figure:
    """
    The graph, and beside it all costs in a table of pairs.

    :param graph: from :func:`~inference.show.graphs.exchange_graph`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.6), layout="constrained", width_ratios=(1.25, 1))
    _draw_graph(axes[0], graph)
    _draw_costs(figure, axes[1], graph)
    return figure


def _draw_graph(axis: Axes, graph: nx.DiGraph) -> None:
    colors = expert_colors(len(graph))
    title = "experts: shadow price v, load"
    if len(graph) > READABLE:
        highest = sorted(graph, key=lambda expert: -graph.nodes[expert]["price"])[:READABLE]
        graph = graph.subgraph(highest)
        title = f"the {READABLE} highest shadow prices v"
    place = nx.circular_layout(sorted(graph))
    edges = list(graph.edges)
    if len(graph) > LABELLED:
        edges = [
            min(out, key=lambda edge: graph.edges[edge]["cost"])
            for node in graph
            if (out := list(graph.out_edges(node)))
        ]
    curve = "arc3,rad=0.16"
    shown = {"ax": axis, "edgelist": edges, "connectionstyle": curve}
    nx.draw_networkx_edges(
        graph, place, **shown, node_size=1500, edge_color=[colors[a] for a, _ in edges], width=1.3, arrowsize=13
    )
    labels = {edge: f"{graph.edges[edge]['cost']:.2f}" for edge in edges}
    for a, b in edges:
        # With all edges, nearer to the beginning than to the end, so that the labels of crossing ones do not meet.
        nx.draw_networkx_edge_labels(
            graph,
            place,
            {(a, b): labels[a, b]},
            ax=axis,
            connectionstyle=curve,
            label_pos=0.36 if len(graph) <= LABELLED else 0.5,
            font_size=8,
            font_color=colors[a],
            rotate=False,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"},
        )
    nx.draw_networkx_nodes(graph, place, ax=axis, node_size=1500, node_color=[colors[node] for node in graph])
    for node, (x, y) in place.items():
        data = graph.nodes[node]
        text = f"{node}\nv = {data['price']:.2f}\n{data['load']}/{data['capacity']}"
        axis.text(x, y, text, ha="center", va="center", fontsize=7, color="white", weight="bold")
    axis.margins(0.18)
    axis.set_axis_off()
    axis.set_title(title + (", cheapest exchanges" if len(graph) > LABELLED else ""))


def _draw_costs(figure: Figure, axis: Axes, graph: nx.DiGraph) -> None:
    costs = nx.to_numpy_array(graph, weight="cost", nonedge=np.nan)
    np.fill_diagonal(costs, np.nan)
    largest = np.abs(np.nan_to_num(costs)).max() or 1.0
    axis.set_facecolor("0.9")  # where there is no edge
    image = axis.imshow(costs, cmap="RdBu_r", vmin=-largest, vmax=largest)
    if len(graph) <= READABLE:
        for (a, b), cost in np.ndenumerate(costs):
            if a != b:
                text = f"{cost:.2f}" if np.isfinite(cost) else "∞"
                color = "white" if abs(cost) > 0.6 * largest else "black"
                axis.text(b, a, text, ha="center", va="center", fontsize=9 if len(graph) <= 6 else 6.5, color=color)
        axis.set_xticks(range(len(graph)))
        axis.set_yticks(range(len(graph)))
    axis.set(xlabel="to expert b", ylabel="from expert a", title="exchange cost W[a, b]")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="perturbed score", shrink=0.75)


def _spread(number: int) -> np.ndarray:
    """Places from 0 to 1, in the middle of equal parts."""
    return (np.arange(number) + 0.5) / number
