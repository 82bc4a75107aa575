"""The training loop: steps on a loss, stopped before anything is lost."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """
    A loss or gradient became NaN or infinite; the parameters are those of the last finite step.

    :param step: the step at which it happened, counted from 0.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"the {what} is not finite at step {step}: training stopped, and the parameters are back at those of the "
            "last finite step; try a smaller learning rate, or look at the data of this step"
        )
        self.step = step


def steps(
    module: nn.Module, loss: Callable[[], Tensor], *, num_steps: int, learning_rate: float
) -> Iterator[tuple[int, float]]:
    """
    Train with Adam, yielding ``(step, loss)`` after every step.

    :param module: its parameters are trained.
    :param loss: a differentiable scalar, new at every call.
    :raises NonFiniteLossError: with the last good parameters restored.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be a positive int, got {num_steps!r}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate!r}")
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    last_good = [p.detach().clone() for p in parameters]
    for step in range(num_steps):
        optimizer.zero_grad()
        value = loss()
        problem = None if torch.isfinite(value) else "loss"
        if problem is None:
            value.backward()
            gradients = [p.grad for p in parameters if p.grad is not None]
            # One synchronisation for all parameters.
            if not torch.isfinite(torch.stack([g.abs().max() for g in gradients])).all():
                problem = "gradient"
        if problem is not None:
            with torch.no_grad():
                for parameter, good in zip(parameters, last_good):
                    parameter.copy_(good)
            raise NonFiniteLossError(step, problem)
        with torch.no_grad():
            for parameter, good in zip(parameters, last_good):
                good.copy_(parameter)
        optimizer.step()
        yield step, value.item()


def minibatches(*tensors: Tensor, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    """
    Endless passes over the datapoints, each in a new random order; the last batch of a pass may be smaller.

    :param tensors: (n, ...) each.

    >>> batches = minibatches(torch.arange(5), batch_size=3)
    >>> [len(next(batches)[0]) for _ in range(4)]
    [3, 2, 3, 2]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    while True:
        for index in torch.randperm(len(tensors[0]), device=tensors[0].device).split(batch_size):
            yield tuple(tensor[index] for tensor in tensors)
