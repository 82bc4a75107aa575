"""What a fit does differently where a batch is cut into groups, and processes share them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from prob_moe.mixture import MixtureOfExperts
from prob_moe.parallel import (
    Groups,
    ParallelExperts,
    expert_parameters,
    full_state_dict,
    gather_experts,
    load_full_state_dict,
    sum_gradients,
)
from prob_moe.parallel.mesh import agree

State = dict[str, Any]


class Sharing:
    """A process alone, with batches as they are."""

    def divide(self, model: Any) -> Any:
        """:returns: the model, of whose experts this process keeps its own."""
        return model

    def in_groups(self, model: Any) -> Any:
        """:returns: the model of this process's part of a batch (x, y)."""
        return model

    def step(self, step: int) -> AbstractContextManager[None]:
        """Draws of a step are made within."""
        return nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """:returns: the sum over processes, without gradient."""
        return value.detach()

    def mean(self, row: dict[str, float]) -> dict[str, float]:
        """:returns: the means over processes, by name."""
        return row

    def largest(self, value: int) -> int:
        """:returns: over all processes."""
        return value

    def agree(self, problem: str | None = None, **facts: object) -> None:
        """
        Tell the other processes what has to be the same everywhere.

        :param problem: why this process cannot go on, if so.
        :raises ValueError: in all processes, if one has a problem, or facts differ.
        """

    def sum_gradients(self, model: nn.Module) -> None:
        """After the backward pass."""

    def served(self, model: Any, build: Callable[[], Any]) -> AbstractContextManager[Any]:
        """
        :param build: makes such a model.
        :returns: within, the model with all its experts, to be looked at.
        """
        return nullcontext(model)

    def gather(self, model: nn.Module, trainer: State, loss: State) -> tuple[State, State]:
        """:returns: the states as those of a process alone: what a checkpoint holds."""
        return trainer, loss

    def scatter(self, model: nn.Module, trainer: State, loss: State) -> tuple[State, State]:
        """:returns: what of them is this process's; the inverse of :meth:`gather`."""
        return trainer, loss


class Grouped:
    """
    A mixture of a batch that is cut into groups.

    :param mixture: for (groups, n, d).
    """

    max_plate_nesting = 2

    def __init__(self, mixture: MixtureOfExperts, groups: Groups) -> None:
        self.mixture, self.groups = mixture, groups

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """:param x: the global batch, (datapoints, d)."""
        own_x, own_y, mask = self.groups.cut(x, y)
        with pyro.plate("groups", len(own_x), dim=-2):
            self.mixture(own_x, own_y, mask)


class InGroups(Sharing):
    """
    A batch in groups, each routed by itself, whose draws have keys.

    :param num_groups: G.
    :param seed: of the draws.
    :param mesh: of the processes that share them; None for one.
    :raises ValueError: in all processes, if they cannot, see :class:`~prob_moe.parallel.Groups`.
    """

    def __init__(self, num_groups: int, seed: int, mesh: DeviceMesh | None) -> None:
        self.groups, self.mesh = Groups(num_groups, mesh), mesh
        self.draws = self.groups.keyed_draws(seed)

    def divide(self, model: Any) -> Any:
        """:raises ValueError: of a model with several layers, or of sequences."""
        model = one_layer(model)
        if self.mesh is not None:
            model.experts = ParallelExperts(model.experts, self.mesh)
        return model

    def in_groups(self, model: Any) -> Any:
        return Grouped(model, self.groups)

    def step(self, step: int) -> AbstractContextManager[None]:
        return self.draws.step(step)

    def total(self, value: Tensor) -> Tensor:
        value = value.detach().clone()
        if self.mesh is not None:
            dist.all_reduce(value)
        return value

    def mean(self, row: dict[str, float]) -> dict[str, float]:
        device = None if self.mesh is None else self.mesh.device_type
        values = self.total(torch.tensor(list(row.values()), dtype=torch.float64, device=device))
        return dict(zip(row, (values / self.groups.num_processes).tolist()))

    def largest(self, value: int) -> int:
        if self.mesh is None:
            return value
        told = torch.tensor(value, device=self.mesh.device_type)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def agree(self, problem: str | None = None, **facts: object) -> None:
        if self.mesh is not None:
            agree(problem, **facts)

    def sum_gradients(self, model: nn.Module) -> None:
        if self.mesh is not None:
            sum_gradients(model)

    @contextmanager
    def served(self, model: Any, build: Callable[[], Any]) -> Iterator[Any]:
        if self.mesh is None:
            yield model
            return
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            whole = build()
            whole.load_state_dict(full_state_dict(model))
        with pyro.get_param_store().scope():
            yield whole.train(model.training)

    def gather(self, model: nn.Module, trainer: State, loss: State) -> tuple[State, State]:
        if self.mesh is None:
            return trainer, loss
        experts = _experts(model)
        trainer = trainer | {
            "module": {name: value.detach() for name, value in full_state_dict(model).items()},
            **_of_experts(model, trainer, lambda part: gather_experts(experts, part)),
        }
        return trainer, _of_groups(loss, self.groups.gather)

    def scatter(self, model: nn.Module, trainer: State, loss: State) -> tuple[State, State]:
        if self.mesh is None:
            return trainer, loss
        experts, first = _experts(model), self.groups.first
        own = slice(experts.first, experts.first + experts.local.num_experts)
        load_full_state_dict(model, trainer["module"])
        trainer = trainer | {
            "module": model.state_dict(),
            **_of_experts(model, trainer, lambda whole: whole[own].clone()),
        }
        return trainer, _of_groups(loss, lambda whole: whole[first : first + self.groups.num_local].clone())


def one_layer(model: nn.Module) -> MixtureOfExperts:
    """
    :returns: the model.
    :raises ValueError: if it is not one layer of experts.
    """
    if not isinstance(model, MixtureOfExperts):
        raise ValueError(
            "groups (num_groups) are for models of one layer of experts on datapoints, got a "
            f"{type(model).__name__}: leave them out"
        )
    return model


def _experts(model: nn.Module) -> ParallelExperts:
    return next(part for part in model.modules() if isinstance(part, ParallelExperts))


def _of_experts(model: nn.Module, trainer: State, change: Callable[[Tensor], Tensor]) -> State:
    """Change what the optimiser and the last good parameters say of experts."""
    divided = expert_parameters(model)
    numbers = {number for number, parameter in enumerate(model.parameters()) if parameter in divided}

    def moments(number: int, state: State) -> State:
        if number not in numbers:
            return state
        return {name: change(value) if value.dim() else value for name, value in state.items()}

    optimizer = trainer["optimizer"]
    states = {number: moments(number, state) for number, state in optimizer["state"].items()}
    last_good = [change(value) if number in numbers else value for number, value in enumerate(trainer["last_good"])]
    return {"optimizer": optimizer | {"state": states}, "last_good": last_good}


def _of_groups(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change what baselines remember of each group."""
    if isinstance(state, dict):
        return {name: _of_groups(value, change) for name, value in state.items()}
    return change(state) if isinstance(state, Tensor) and state.dim() else state
