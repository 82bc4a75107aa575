"""Learning rates that change on the way, as shares of the largest."""

import math

#: of the steps of a fit
WARM_UP = 0.05


def constant(step: int, num_steps: int) -> float:
    """:returns: 1."""
    return 1.0


def cosine(step: int, num_steps: int) -> float:
    """
    Half a cosine, from 1 to 0.

    >>> [round(cosine(step, num_steps=100), 3) for step in (0, 50, 99)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def warm_up_and_cosine(step: int, num_steps: int) -> float:
    """
    Linear from 0 to 1 over the first 5 % of the steps, times half a cosine from 1 to 0 over all.

    >>> [round(warm_up_and_cosine(step, num_steps=100), 3) for step in (0, 4, 50, 99)]
    [0.2, 0.996, 0.5, 0.0]
    """
    warm = min(1.0, (step + 1) / max(1.0, WARM_UP * num_steps))
    return warm * cosine(step, num_steps)
