"""Pictures of the laws of assignments."""

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.likelihood.laws import Likelihood
from inference.registry.builtin import label


def laws(results: dict[str, Likelihood], num_bars: int = 12) -> Figure:
    """Left: the loads of the experts. Right: the most probable assignments, or weights' tails where n is large."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(1, 1.5))
    _loads(left, results)
    if any(result.support is not None for result in results.values()):
        _most_probable(right, results, num_bars)
    else:
        _tails(right, results)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _loads(axis: Axes, results: dict[str, Likelihood]) -> None:
    routing = next(iter(results.values())).routing
    position = np.arange(routing.num_experts)
    for index, (name, result) in enumerate(results.items()):
        loads = result.routing.loads(result.draws).double()
        low, high = loads.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
        mean = loads.mean(0)
        # Means are not between quantiles of every discrete law.
        bars = torch.stack([mean - low, high - mean]).clamp(min=0)
        offset = 0.16 * (index - (len(results) - 1) / 2)
        axis.errorbar(
            position + offset,
            mean.numpy(),
            bars.numpy(),
            fmt="o",
            markersize=4,
            capsize=2,
            color=f"C{index}",
            label=label(name),
        )
    capacity = results["skip"].routing.capacity
    assert capacity is not None
    demand = routing.logits.softmax(-1).sum(0).numpy()
    axis.hlines(demand, position - 0.4, position + 0.4, color="black", linewidth=0.8, label="router's demand Σ p")
    axis.axhline(int(capacity), color="black", linewidth=0.8, linestyle="--", label="capacity")
    axis.set(
        xlabel="expert", ylabel="datapoints processed", title="loads: mean, 5 to 95 % of the draws", ylim=(0, None)
    )
    axis.set_xticks(position[:: max(1, len(position) // 16)])


def _most_probable(axis: Axes, results: dict[str, Likelihood], num_bars: int) -> None:
    """Exact probabilities as bars, frequencies of the draws as points; assignments as the digits of their experts."""
    matching = results["gumbel-matching"]
    assert matching.support is not None
    assert matching.support_log_prob is not None
    order = matching.support_log_prob.argsort(descending=True)[:num_bars]
    position = np.arange(len(order))
    for index, result in enumerate(results.values()):
        at = position + 0.2 * (index - (len(results) - 1) / 2)
        frequency, low, high = np.array([result.frequency(z) for z in matching.support[order]]).T
        if result.support is not None:
            assert result.support_log_prob is not None
            same = (result.support.unsqueeze(0) == matching.support[order].unsqueeze(1)).all(-1)
            # A bar where the assignment is in the support.
            p = (same * result.support_log_prob.exp()).sum(-1)
            axis.bar(at, p.numpy(), width=0.2, color=f"C{index}", alpha=0.5)
        axis.errorbar(
            at,
            frequency,
            np.maximum([frequency - low, high - frequency], 0),
            fmt=".",
            markersize=4,
            color=f"C{index}",
            linewidth=0.8,
        )
    labels = [" ".join(str(e) for e in z.tolist()) for z in matching.support[order]]
    axis.set_xticks(position, labels, rotation=60, ha="right", fontsize=7)
    axis.set(
        xlabel="assignment: the expert of every datapoint",
        ylabel="probability",
        title="most probable matchings (bars: exact, points: draws, 95 %)",
        ylim=(0, None),
    )


def _tails(axis: Axes, results: dict[str, Likelihood]) -> None:
    for index, (name, result) in enumerate(results.items()):
        weights = result.weights.flatten().sort(descending=True).values
        above = np.arange(1, len(weights) + 1) / len(weights)
        k = result.weight_summary()["Pareto k"]
        axis.step(weights.numpy(), above, color=f"C{index}", label=f"{label(name)}, Pareto k = {k:.2f}")
    axis.set(xscale="log", yscale="log", xlabel="importance weight w", ylabel="share of weights ≥ w", title="tails")
    axis.set_xlim(left=0.1)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7)
