"""A fitted model on data it has not seen."""

import torch
from torch import Tensor

from inference.tasks import Model, Task
from inference.training.look import weights_over_layers
from models.assignments import assignments_of
from models.language import LanguageModel
from models.stacked import StackedMixture
from prob_moe.diagnostics import (
    RoutingRecorder,
    dead_experts,
    drop_rate,
    effective_sample_size,
    max_mean_load,
    pareto_k,
    usage_perplexity,
)
from prob_moe.distributions.support import expert_counts, router_choices


def evaluate(
    task: Task, model: Model, data: tuple[Tensor, Tensor], sample: bool
) -> tuple[dict[str, float], list[Tensor]]:
    """
    Predict a data set, and assign it as one batch.

    :param sample: whether to draw the assignment, instead of taking its mode.
    :returns: metrics by name; and, for every layer, the share of each group's datapoints that every expert processes,
        with a last column for what was dropped, (groups, k + 1).
    """
    x, y = data
    layers = zip(_experts_by_layer(model), assignments_of(model, x, sample=sample))
    groups = task.groups(x, y)
    metrics = task.metrics(model, x, y, sample)
    use = []
    for name, (num_experts, z) in zip(("", ", layer 2"), layers):
        # The sequences of a text count together; a datapoint with several experts is dropped when it has lost all.
        z = (z.movedim(-2, 0) if z.numel() > groups.numel() else z).flatten()
        lost = z.view(-1, groups.numel()).amax(0)
        loads = expert_counts(router_choices(z), z >= 0, num_experts)
        metrics[f"max/mean load{name}"] = max_mean_load(loads).item()
        metrics[f"dead experts{name}"] = dead_experts(loads).item()
        metrics[f"usage perplexity{name}"] = usage_perplexity(loads).item()
        metrics[f"drop rate{name}"] = drop_rate(lost).item()
        use.append(_use(z, groups, num_experts, len(task.group_names)))
    return metrics, use


def _experts_by_layer(model: Model) -> list[int]:
    if isinstance(model, LanguageModel):
        return model.experts_by_layer
    if isinstance(model, StackedMixture):
        return [model.experts.num_experts, model.second.experts.num_experts]
    return [model.experts.num_experts]


def _use(z: Tensor, groups: Tensor, num_experts: int, num_groups: int) -> Tensor:
    """
    Shares of a group's datapoints by expert, the last column for what was dropped, (groups, k + 1).

    :param z: of n datapoints, or with m experts for each of m * n, in m blocks.
    """
    groups = groups.repeat(len(z) // max(1, len(groups)))
    destination = torch.where(z >= 0, z, torch.full_like(z, num_experts))
    cells = torch.bincount(groups * (num_experts + 1) + destination, minlength=num_groups * (num_experts + 1))
    counts = cells.view(num_groups, num_experts + 1).cpu().double()
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def draw_metrics(model: Model, x: Tensor) -> dict[str, float]:
    """
    What only a draw can tell.

    :returns: effective sample size and Pareto k of the weights, multiplied over layers, and mean router entropy over
        layers; nothing where no layer draws.
    """
    with RoutingRecorder() as recorder:
        model(x)
    if not recorder.draws:
        return {}
    weights = weights_over_layers(recorder).flatten()
    entropy = [diagnostics.router_entropy for diagnostics in recorder.diagnostics().values()]
    return {
        "weight ESS, one draw (share of n)": effective_sample_size(weights).item(),
        "weight Pareto k, one draw": pareto_k(weights).item(),
        "router entropy (nats)": torch.stack(entropy).mean().item(),
    }
