import pytest
import torch
from torch import nn

from inference.training.trainer import NonFiniteLossError, steps


def test_it_minimises() -> None:
    module = nn.Linear(1, 1)
    losses = [loss for _, loss in steps(module, lambda: module.bias.square().sum(), num_steps=300, learning_rate=0.05)]
    assert losses[-1] < 1e-4 < losses[0]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_step_stops_with_the_last_good_parameters(what: str) -> None:
    module = nn.Linear(1, 1)
    history = []

    def loss() -> torch.Tensor:
        history.append(module.bias.detach().clone())
        value = module.bias.sum()
        if len(history) == 4:
            # sqrt at 0 has a finite value and an infinite gradient
            value = value * torch.nan if what == "loss" else (value - value.detach()).sqrt()
        return value

    with pytest.raises(NonFiniteLossError, match=f"the {what} is not finite at step 3") as raised:
        list(steps(module, loss, num_steps=10, learning_rate=0.1))
    assert raised.value.step == 3
    assert torch.equal(module.bias, history[2])


@pytest.mark.parametrize(
    ("name", "value"), [("num_steps", 0), ("learning_rate", -1.0), ("learning_rate", float("nan"))]
)
def test_bad_settings_are_refused_before_work(name: str, value: float) -> None:
    options = {"num_steps": 1, "learning_rate": 0.1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be positive|{name} must be a positive int"):
        next(steps(nn.Linear(1, 1), lambda: torch.zeros(()), **options))
