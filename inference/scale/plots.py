"""Pictures of what a step costs."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from inference.scale.costs import Cost
from inference.scale.measure import Measured

#: parts of a cost, with their names and colours
PARTS = {
    "draw": ("assignment", "tab:red"),
    "experts": ("experts", "tab:blue"),
    "rows": ("rows through the layer", "tab:cyan"),
    "exchange": ("exchange of datapoints", "tab:orange"),
    "gradients": ("sum of gradients", "tab:green"),
}


def beside_the_model(measured: Sequence[Measured], expected: Sequence[Cost]) -> Figure:
    """Time of a step on each number of processes, in parts, and what the model says of the same."""
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    ticks, labels = [], []
    for place, (found, model) in enumerate(zip(measured, expected)):
        rest = max(found.work - found.draw - found.experts, 0.0)
        seconds = {"draw": found.draw, "experts": found.experts, "rows": rest, "exchange": found.collectives}
        of_model = {name: getattr(model, name) for name in ("draw", "experts", "rows")}
        of_model["exchange"] = model.exchange + model.gradients
        for shift, (who, parts) in enumerate({"measured": seconds, "model": of_model}.items()):
            left = 0.0
            ticks.append(3 * place + shift)
            labels.append(f"{found.num_processes} process{'es' * (found.num_processes > 1)}, {who}")
            for name, value in parts.items():
                label = "collectives" if name == "exchange" else PARTS[name][0]
                shown = label if not place and not shift else None
                axis.barh(ticks[-1], 1e3 * value, left=left, color=PARTS[name][1], label=shown)
                left += 1e3 * value
    axis.set_yticks(ticks, labels)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds of a step")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def drawn_out(num_processes: Sequence[int], costs: Sequence[Cost], draws: dict[str, float]) -> Figure:
    """
    What a process spends on each part of a step, by the number of processes, each with a group of its own.

    :param draws: seconds of the assignment by where it is computed, the same on any number of processes.
    """
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for name in ("experts", "rows", "exchange", "gradients"):
        label, colour = PARTS[name]
        seconds = [1e3 * getattr(cost, name) for cost in costs]
        axis.plot(num_processes, [value or float("nan") for value in seconds], color=colour, label=label)
    for style, (where, seconds_of_draw) in zip(("-", "--", ":"), draws.items()):
        axis.plot(
            num_processes,
            [1e3 * seconds_of_draw] * len(num_processes),
            color=PARTS["draw"][1],
            linestyle=style,
            label=f"assignment, {where}",
        )
    axis.set(yscale="log", xlabel="devices", ylabel="milliseconds of a step")
    axis.set_xscale("log", base=2)
    axis.set_xticks(num_processes[::2], [str(number) for number in num_processes[::2]])
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
