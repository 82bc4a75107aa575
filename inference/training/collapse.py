"""Experts that nobody uses, told once."""

import torch

from inference.runs.exits import note
from inference.training.look import Row, site_loads
from prob_moe.diagnostics import usage_perplexity

#: datapoints per expert that must have been seen before anything is said
LEAST_SEEN = 10


def unused(loads: dict[str, list[float]]) -> list[str]:
    """
    :param loads: of every expert by assignment site, summed or averaged over steps.
    :returns: in words, the sites where fewer than half of the experts are in effective use.

    >>> unused({"first": [5.0, 5.0, 5.0, 5.0], "second": [20.0, 0.0, 0.0, 0.0]})
    ['second: 1.0 of 4 experts (usage perplexity)']
    """
    used = {
        site: float(usage_perplexity(torch.tensor(of_site, dtype=torch.float64))) for site, of_site in loads.items()
    }
    return [
        f"{site}: {used[site]:.1f} of {len(of_site)} experts (usage perplexity)"
        for site, of_site in loads.items()
        if used[site] < len(of_site) / 2
    ]


class CollapseWarning:
    """Adds up the loads that a fit is seen to have, and warns on stderr, once, where they leave experts unused."""

    def __init__(self) -> None:
        self.warned = False
        self._loads: dict[str, list[float]] = {}

    def add(self, look: Row) -> None:
        """:param look: of a step, see :func:`~inference.training.look.look_at`."""
        for site, loads in site_loads(look).items():
            before = self._loads.get(site, [0.0] * len(loads))
            self._loads[site] = [a + b for a, b in zip(before, loads)]

    def end_epoch(self, epoch: int) -> None:
        """:param epoch: from 1. What was seen is forgotten, unless it was too little to judge."""
        if self.warned or any(sum(loads) < LEAST_SEEN * len(loads) for loads in self._loads.values()):
            return
        found = unused(self._loads)
        self._loads = {}
        if found:
            self.warned = True
            line = (
                f"warning: fewer than half of the experts are used in epoch {epoch}, {'; '.join(found)}: "
                "try a load-balancing loss, a baseline, or a smaller learning rate"
            )
            note(line)
