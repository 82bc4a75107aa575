"""The sections of a report that look into the fitted model."""

import torch

from inference.show import captions, graph_figures, graphs, router_map
from inference.show.html import Content, Text, picture
from inference.show.router_map import LETTERS, Served
from inference.show.routing_view import RoutingView, favourite
from inference.show.run_figures import layer_names
from inference.training import plots as fit_plots
from inference.training.evaluate import evaluate
from inference.training.run import Fit
from prob_moe.distributions import AssignmentDistribution, GumbelMatching

#: datapoints of an assignment graph
SMALL = 24


def map_pictures(fit: Fit, view: RoutingView) -> Content:
    """Router probabilities over the inputs for one or two of them; principal components for more."""
    first, *further = view.draws.items()
    points = view.x.double().numpy() if view.x.is_floating_point() and view.x.dim() == 2 else None
    content: Content = []
    if points is None:
        further = list(view.draws.items())
        content.append(Text(captions.NOT_POINTS))
    else:
        served = Served(points, view.served[0], first[1][0].num_experts, view.groups)
        content += _of_inputs(fit, view, served)
    names = dict(zip(view.draws, layer_names(list(view.draws))))
    for site, (routing, z) in further:
        # A forbidden expert is at minus infinity, which has no place in a picture.
        log_p = routing.logits.log_softmax(-1).clamp(min=-30).double().reshape(-1, routing.num_experts)
        present = _present(routing, z)
        groups = [group for group, there in zip(view.groups, present.tolist()) if there]
        served = Served(
            log_p[present].numpy(), favourite(z, routing).flatten()[present].numpy(), routing.num_experts, groups
        )
        figure = router_map.principal_components(served, "the router's log-probabilities")
        content.append(picture(figure, captions.LOGITS.format(layer=_sentence(names[site]))))
    return content


def _of_inputs(fit: Fit, view: RoutingView, served: Served) -> Content:
    """The first layer, by what its router sees."""
    if served.points.shape[1] == 1:
        figure = router_map.along_a_line(fit.model, view.x, view.y, served)
        return [picture(figure, captions.LINE)]
    if served.points.shape[1] == 2:
        figure = router_map.over_the_plane(fit.model, view.x, served)
        return [picture(figure, captions.PLANE)]
    figure = router_map.principal_components(served, "the inputs")
    caption = captions.COMPONENTS.format(label=fit.task.group_label)
    content: Content = [picture(figure, caption)]
    if fit.task.image_shape is not None:
        content.append(picture(router_map.mean_images(served, fit.task.image_shape), captions.IMAGES))
    return content


def graph_pictures(fit: Fit, view: RoutingView) -> Content:
    """A small draw of every layer as a bipartite graph, and its exchange graph where it is a matching."""
    content: Content = []
    for (routing, z), layer in zip(view.draws.values(), layer_names(list(view.draws))):
        content += _graphs_of_layer(fit, view, routing, z, _sentence(layer))
    return content


def _graphs_of_layer(
    fit: Fit, view: RoutingView, routing: AssignmentDistribution, z: torch.Tensor, layer: str
) -> Content:
    number = max(SMALL, min(2 * routing.num_experts, 2 * SMALL))
    rows = _present(routing, z).nonzero().flatten()[:number]
    logits = routing.logits.reshape(-1, routing.num_experts)[rows]
    draw = graphs.small_draw(logits, routing, fit.options.model.capacity_factor)
    groups = [view.groups[row] for row in rows.tolist()]
    short = all(len(group) <= LETTERS for group in groups)
    names = groups if short else [str(i) for i in range(len(groups))]
    graph = graphs.assignment_graph(draw)
    what = f"named by their {fit.task.group_label}" if short else "numbered"
    caption = captions.ASSIGNMENT.format(layer=layer, number=len(rows), names=what)
    content: Content = [picture(graph_figures.draw_assignment(graph, names), caption)]
    if isinstance(routing, GumbelMatching):
        figure = graph_figures.draw_exchange(graphs.exchange_graph(draw))
        content.append(picture(figure, captions.EXCHANGE.format(layer=layer)))
    else:
        content.append(Text(captions.NO_EXCHANGE.format(name=type(routing).__name__)))
    return content


def expert_use(fit: Fit) -> Content:
    """Shares of the groups of the test set by expert, as served."""
    task = fit.task
    _, use = evaluate(task, fit.model, task.test, fit.options.sample)
    caption = captions.EXPERT_USE.format(label=task.group_label, seed=fit.seed)
    return [picture(fit_plots.expert_use(use, task.group_label, task.group_names, ""), caption)]


def _present(routing: AssignmentDistribution, z: torch.Tensor) -> torch.Tensor:
    """Who takes part in a layer, bool (n,)."""
    z = z if routing.num_selected is None else z[..., 0, :]
    return (
        torch.ones_like(z, dtype=torch.bool).flatten()
        if routing.mask is None
        else routing.mask.expand(z.shape).flatten()
    )


def _sentence(layer: str) -> str:
    """The name of a layer as a beginning."""
    return f"{layer[0].upper()}{layer[1:]}. " if layer else ""
