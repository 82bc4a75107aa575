"""The graphs and maps of a report show what they are drawn from."""

from collections.abc import Iterator

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from torch import nn

from inference.figure_style import DROPPED, expert_colors
from inference.show.graph_figures import draw_assignment, draw_exchange
from inference.show.graphs import assignment_graph, exchange_graph, small_draw
from inference.show.router_map import Served, along_a_line, over_the_plane, principal_components
from inference.show.run_figures import learning_curves
from inference.show.weight_figures import weights
from models.piecewise import gaussian, piecewise_data, piecewise_mixture
from prob_moe.distributions import CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.numerics import exchange_costs


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("num_experts", "factor"), [(2, 1.0), (4, 1.0), (4, 1.5), (9, 1.25)])
def test_edges_of_the_exchange_graph_are_the_exchange_costs(num_experts: int, factor: float) -> None:
    logits = 2 * torch.randn(24, num_experts, dtype=torch.float64)
    draw = small_draw(logits, GumbelMatching(logits, capacity_factor=factor), factor)
    matching = draw.routing.matching(draw.value)
    scores, prices, distances = matching.scores, matching.prices, matching.distances
    graph = exchange_graph(draw)
    costs = exchange_costs(scores, draw.value, draw.routing.capacity)
    edges = torch.full_like(costs, torch.inf).fill_diagonal_(0)
    for a, b, cost in graph.edges(data="cost"):
        edges[a, b] = cost
    assert torch.equal(edges, costs)
    assert [graph.nodes[expert]["price"] for expert in range(num_experts)] == prices.tolist()
    # Chains of exchanges in the graph, found by another library, are those that made the prices.
    chains = dict(nx.all_pairs_bellman_ford_path_length(graph, weight="cost"))
    for a, b in np.ndindex(num_experts, num_experts):
        assert chains[a][b] == pytest.approx(float(distances[a, b]), abs=1e-9)


def test_an_expert_that_nobody_can_leave_has_no_edge_out() -> None:
    logits = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf], [0.0, 1.0], [0.0, 1.0]])
    draw = small_draw(logits, GumbelMatching(logits, capacity=2), 1.0)
    assert set(exchange_graph(draw).edges) == {(1, 0)}


def test_a_procedure_without_scores_has_no_exchange_graph() -> None:
    logits = torch.zeros(4, 2)
    draw = small_draw(logits, CapacitySkip(logits, capacity=2), 1.0)
    with pytest.raises(ValueError, match="CapacitySkip is not a matching: it has no exchange graph"):
        exchange_graph(draw)


def test_the_assignment_graph_says_who_is_dropped() -> None:
    logits = torch.randn(24, 3)
    draw = small_draw(logits, CapacitySkip(logits, capacity_factor=1.0), 1.0)
    graph = assignment_graph(draw)
    assert (draw.value < 0).any()
    for i, entry in enumerate(draw.value.tolist()):
        ((_, (_, expert), edge),) = graph.edges(("datapoint", i), data=True)
        assert (expert, edge["dropped"]) == ((entry, False) if entry >= 0 else (~entry, True))
        assert edge["probability"] == pytest.approx(logits[i].softmax(-1)[expert].item(), rel=1e-5)
    processed = [int((draw.value == expert).sum()) for expert in range(3)]
    assert [graph.nodes["expert", expert]["load"] for expert in range(3)] == processed
    assert graph.nodes["expert", 0]["capacity"] == 8


@pytest.mark.parametrize("num_experts", [3, 40])
def test_graphs_are_drawn_with_their_numbers(num_experts: int) -> None:
    logits = torch.randn(48, num_experts)
    draw = small_draw(logits, GumbelMatching(logits, capacity_factor=1.0), 1.0)
    graph = exchange_graph(draw)
    texts = {text.get_text() for text in draw_exchange(graph).axes[0].texts}
    dearest = sorted(graph.nodes(data=True), key=lambda node: -node[1]["price"])[:12]
    for expert, data in dearest:
        assert f"{expert}\nv = {data['price']:.2f}\n{data['load']}/{data['capacity']}" in texts
    if num_experts == 3:
        assert texts >= {f"{cost:.2f}" for _, _, cost in graph.edges(data="cost")}
    labels = [text.get_text() for text in draw_assignment(assignment_graph(draw), ["a"] * 48).axes[0].texts]
    assert labels.count("a") == 48


def served(points: np.ndarray, num_experts: int) -> Served:
    return Served(points, np.arange(len(points)) % num_experts, num_experts, ["g"] * len(points))


def test_the_map_along_a_line_shows_the_router() -> None:
    mixture = piecewise_mixture(GumbelMatching)
    x, y = piecewise_data((), 30)
    top, bottom = along_a_line(mixture, x, y, served(x.numpy(), 2)).axes
    for expert, line in enumerate(top.lines):
        at = torch.as_tensor(line.get_xdata())[:, None]
        np.testing.assert_allclose(line.get_ydata(), mixture.router(at).softmax(-1)[:, expert].detach(), rtol=1e-5)
        predicted = mixture.experts.dense(at)[:, expert, 0].detach()
        np.testing.assert_allclose(bottom.lines[expert].get_ydata(), predicted, rtol=1e-5)
    order = x[:, 0].argsort()
    np.testing.assert_allclose(
        bottom.collections[0].get_offsets(), torch.column_stack([x[order, 0], y[order]]), atol=1e-5
    )


def test_datapoints_on_one_another_are_a_larger_disc() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(2, 4)), (5, 1), axis=0)
    same = Served(points, np.array([0, 0, 0, ~1, ~0, 1]), 2, ["a group"] * 6)
    (axis,) = principal_components(same, "the inputs").axes
    sizes = axis.collections[0].get_sizes()
    colors = [tuple(color[:3]) for color in axis.collections[0].get_facecolors()]
    area = {color: size / sizes.min() for color, size in zip(colors, sizes)}
    assert area == {to_rgb(DROPPED): 2, to_rgb(expert_colors(2)[0]): 3, to_rgb(expert_colors(2)[1]): 1}


def test_the_map_over_the_plane_shows_the_router() -> None:
    mixture = MixtureOfExperts(
        nn.Linear(2, 2), BatchedExperts(2, 2, None, 1), gaussian, assignment=IndependentRouting, capacity_factor=1.0
    )
    with torch.no_grad():
        # Expert 0 at the left of the line across = 0, expert 1 at the right of it, whatever the second input.
        mixture.router.weight.copy_(torch.tensor([[-1e3, 0.0], [1e3, 0.0]]))
        mixture.router.bias.zero_()
    x = torch.tensor([[-1.0, -3.0], [1.0, 5.0]])
    (axis,) = over_the_plane(mixture, x, served(x.numpy(), 2)).axes
    image = axis.images[0].get_array()
    for expert, side in enumerate((image[:, :70], image[:, 90:])):
        pale = 1 - 0.6 * (1 - np.array(to_rgb(expert_colors(2)[expert])))
        np.testing.assert_allclose(side, np.broadcast_to(pale, side.shape), atol=1e-6)
    assert axis.images[0].get_extent() == pytest.approx([-1.1, 1.1, -3.4, 5.4])


def test_an_outlier_does_not_turn_the_plane_of_the_components() -> None:
    points = torch.randn(200, 5, dtype=torch.float64) * torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1])
    points[0] = torch.tensor([0, 0, 0, 0, 1e3])
    (axis,) = principal_components(served(points.numpy(), 3), "the inputs").axes
    shown = np.concatenate([collection.get_offsets() for collection in axis.collections])
    spread = np.sort(np.abs(shown), axis=0)[-2]
    assert spread[0] > 8
    assert spread[1] > 4


def test_references_are_levels_in_a_panel_and_not_panels() -> None:
    steps = pd.DataFrame({"step": [1, 2], "epoch": [1, 2], "loss": [2.0, 1.0], "seed": 0})
    epochs = pd.DataFrame({"epoch": [1, 2], "seed": 0, "loss": [2.0, 1.0], "load": 1.0, "drops": 0.0})
    epochs = epochs.assign(**{"bits": [3.0, 2.0], "drop rate": 0.0, "reference: of one letter": 4.5})
    loss, bits = learning_curves(steps, epochs).axes
    assert [list(line.get_ydata()) for line in bits.lines] == [[3.0, 2.0], [4.5, 4.5]]
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0]] * 2


@pytest.mark.parametrize(
    "drawn", [np.ones(30), np.array([0.0, 1.0, 2.0, 2.0, 0.5]), np.zeros(4), np.array([1e-6, 1e4])]
)
def test_every_weight_is_in_the_histogram(drawn: np.ndarray) -> None:
    row = {"step": 1, "seed": 0, "weight_ess": 1.0, "weight_ess/z": 1.0, "load/z/0": 2.0, "load/z/1": 2.0}
    axis = weights(pd.DataFrame([row]), drawn).axes[1]
    assert sum(patch.get_height() for patch in axis.patches) == len(drawn)
