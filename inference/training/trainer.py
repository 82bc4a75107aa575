"""The training loop: steps on a loss, stopped before anything is lost."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference.training.schedule import constant
from inference.training.sharing import Sharing


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


class Trainer:
    """
    Adam, step by step.

    :param module: its parameters are trained.
    :param loss: a differentiable scalar, new at every call.
    :param schedule: from the number of steps done to the share of the learning rate that the next one has.
    :param sharing: with other processes, whose losses are added to this one's; None for one alone.
    :raises ValueError: on a learning rate that is not positive and finite.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[], Tensor],
        *,
        learning_rate: float,
        schedule: Callable[[int], float] = lambda step: 1.0,
        sharing: Sharing | None = None,
    ) -> None:
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {learning_rate!r}")
        self.module = module
        self.loss = loss
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.sharing = sharing or Sharing()
        self.num_steps = 0  #: done so far
        self._parameters = list(module.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=learning_rate)
        self._last_good = [p.detach().clone() for p in self._parameters]

    def step(self) -> float:
        """
        :returns: the loss before the step.
        :raises NonFiniteLossError: with the last good parameters restored.
        """
        self._optimizer.zero_grad()
        own = self.loss()
        value = self.sharing.total(own)
        problem = None if torch.isfinite(value) else "loss"
        if problem is None:
            own.backward()
            self.sharing.sum_gradients(self.module)
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            # One synchronisation for all parameters.
            wrong = not torch.isfinite(torch.stack([g.abs().max() for g in gradients])).all()
            if self.sharing.largest(wrong):
                problem = "gradient"
        if problem is not None:
            _copy(self._last_good, self._parameters)
            raise NonFiniteLossError(self.num_steps, problem)
        _copy(self._parameters, self._last_good)
        self._optimizer.param_groups[0]["lr"] = self.learning_rate * self.schedule(self.num_steps)
        self._optimizer.step()
        self.num_steps += 1
        return value.item()

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers, the optimiser, the last good parameters, and the number of steps."""
        return {
            "module": {name: value.detach() for name, value in self.module.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "last_good": self._last_good,
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        _copy(state["last_good"], self._last_good)
        self.num_steps = state["num_steps"]


def steps(
    module: nn.Module,
    loss: Callable[[], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    schedule: Callable[[int, int], float] = constant,
) -> Iterator[tuple[int, float]]:
    """
    Train with Adam, yielding ``(step, loss)`` after every step.

    :param module: its parameters are trained.
    :param loss: a differentiable scalar, new at every call.
    :param schedule: from steps done and steps in all to the share of the learning rate that the next one has.
    :raises NonFiniteLossError: with the last good parameters restored.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be a positive int, got {num_steps!r}")
    trainer = Trainer(module, loss, learning_rate=learning_rate, schedule=lambda step: schedule(step, num_steps))
    for step in range(num_steps):
        yield step, trainer.step()


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for old, new in zip(target, source):
        old.copy_(new)
