"""What training moves without a gradient: collected by forward passes and losses, moved once per optimiser step."""

import warnings
from collections import deque

from torch import Tensor, nn

from prob_moe.estimators.baselines import Baseline

#: cost, weight and present of one step, see :class:`~prob_moe.estimators.Baseline`
Step = tuple[Tensor, Tensor, Tensor]


class Moves:
    """What one layer has collected since its last update."""

    def __init__(self) -> None:
        # Whoever never updates keeps the last ones only.
        self._steps: deque[tuple[Baseline, Step]] = deque(maxlen=1000)
        # How often parameters had been written to when the first was collected.
        self._writes: int | None = None
        self._warned = False

    def collect(self, layer: nn.Module, learnt: tuple[Baseline, Step] | None = None) -> None:
        """
        Warns once where an optimiser has moved the layer's parameters since the first that was collected. Several
        passes of one optimiser step (microbatches) do not.

        :param learnt: a baseline, and a step that it learns from.
        """
        writes = sum(parameter._version for parameter in layer.parameters())
        if self._writes is None:
            self._writes = writes
        elif writes != self._writes and not self._warned:
            self._warned = True
            warnings.warn(
                "an ExpertLayer was trained for a second optimiser step without layer.update(), so what moves without "
                "a gradient (a bias, the means of a baseline) stays as it is; call it once per optimiser step",
                stacklevel=3,
            )
        if learnt is not None:
            self._steps.append(learnt)

    def update(self) -> None:
        """Let baselines learn from their steps."""
        self._writes = None
        while self._steps:
            baseline, step = self._steps.popleft()
            baseline.update(*step)
