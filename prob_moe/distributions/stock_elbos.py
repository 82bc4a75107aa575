"""Pyro's own ELBOs on a model that draws an assignment by itself: they would train something that is no objective."""

import sys
from types import FrameType

from pyro.infer.enum import get_importance_trace
from pyro.infer.importance import Importance
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK

# All of Pyro's ELBOs make the model's trace in the first of these, importance sampling in the second.
_WEIGHS_MODEL_AGAINST_GUIDE = (get_importance_trace.__code__, Importance._traces.__code__)


def refuse_stock_elbos(name: str) -> None:
    """
    Called where a draw is made. A guide's draw, an observed or an enumerated assignment never come here, and a replay
    outside of Pyro's ELBOs (for predictions, say) is nobody's loss.

    :param name: of the distribution.
    :raises ValueError: if one of Pyro's ELBOs runs the model, and the guide left the draw to it.
    """
    if not any(isinstance(messenger, ReplayMessenger) and messenger.trace is not None for messenger in _PYRO_STACK):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _WEIGHS_MODEL_AGAINST_GUIDE:
            from prob_moe.estimators.right_ways import RIGHT_WAYS  # which imports distributions

            raise ValueError(
                f"the model draws an assignment ({name}) that the guide does not: this ELBO would take its "
                f"log-probability for data and train neither objective; use {RIGHT_WAYS}"
            )
        frame = frame.f_back
