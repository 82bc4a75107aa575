"""What a fit is asked for, as it is written down, and compared when the fit goes on."""

import shlex
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self, get_args, get_type_hints

from inference.registry import Entry
from inference.registry.builtin import REGISTRY
from inference.registry.names import UnknownNameError
from inference.registry.plugins import loaded
from inference.runs.checkpoint import differences
from inference.tasks import ModelOptions, Task
from inference.training.device import Dtype
from inference.training.run import FitOptions


class Serve(StrEnum):
    """Which assignment loads are counted in, and whose experts speak in a text."""

    MODE = "mode"
    SAMPLE = "sample"


class MissingPluginError(ValueError):
    """A run needs a plugin that has not been loaded; the message says which."""


@dataclass(frozen=True)
class FitConfig:
    """
    The options of the command ``fit`` that change what comes out, names as in the registry. None takes the task's own.

    :raises UnknownNameError: on a name that the registry does not have.
    :raises ValueError: on seeds that the generators do not take.
    """

    task: str
    assignment: str
    capacity_factor: float
    estimator: str | None
    baseline: str
    num_particles: int | None
    num_experts: int | None
    hidden_features: int | None
    num_layers: int
    load_balancing: float
    num_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    serve: Serve
    seed: int
    num_seeds: int
    device: str
    dtype: Dtype
    num_selected: int | None = None
    num_groups: int | None = None
    experts_in: str | None = None
    router: str | None = None
    router_scale: float | None = None

    def __post_init__(self) -> None:
        for name, entry in self._entries().items():
            object.__setattr__(self, name, entry.name)
        if self.num_seeds < 1:
            raise ValueError(f"num_seeds must be a positive int, got {self.num_seeds!r}")
        if not 0 <= self.seed <= 2**32 - self.num_seeds:
            raise ValueError(f"seed must be an int from 0 to {2**32 - self.num_seeds}, got {self.seed!r}")

    def _entries(self) -> dict[str, Entry]:
        """By option, what has the name."""
        named: dict[str, Entry] = {
            "task": REGISTRY.tasks[self.task],
            "assignment": REGISTRY.to_fit(self.assignment),
        }
        if self.estimator is not None:
            named["estimator"] = REGISTRY.estimators[self.estimator]
        return {**named, "baseline": REGISTRY.baselines[self.baseline]}

    def plugins(self) -> list[str]:
        """:returns: the plugins that the names are of, each once."""
        origins = (entry.origin for entry in self._entries().values())
        return list(dict.fromkeys(origin for origin in origins if origin))

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)

    def resolved(self, task: Task) -> Self:
        """With the task's own values in the place of None, so that the record does not depend on them."""
        default_particles = 2 if REGISTRY.baselines[self.baseline].needs_particles else 1
        return replace(
            self,
            num_epochs=task.num_epochs if self.num_epochs is None else self.num_epochs,
            batch_size=task.batch_size if self.batch_size is None else self.batch_size,
            learning_rate=task.learning_rate if self.learning_rate is None else self.learning_rate,
            num_particles=default_particles if self.num_particles is None else self.num_particles,
        )

    def options(self, task: Task) -> FitOptions:
        """
        :raises ValueError: if they do not go together.
        """
        config = self.resolved(task)
        assert config.num_epochs is not None
        assert config.batch_size is not None
        assert config.learning_rate is not None
        assert config.num_particles is not None
        return FitOptions(
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            model=ModelOptions(
                self.assignment,
                self.baseline,
                self.capacity_factor,
                self.load_balancing,
                self.num_experts,
                self.hidden_features,
                self.num_layers,
                self.num_selected,
                self.experts_in,
                self.router,
                self.router_scale,
            ),
            estimator=self.estimator,
            num_particles=config.num_particles,
            sample=self.serve is Serve.SAMPLE,
            num_groups=config.num_groups,
        )

    def plain(self) -> dict[str, Any]:
        """By name, as JSON has it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}

    @classmethod
    def of_plain(cls, values: dict[str, Any], plugins: list[str]) -> Self:
        """
        :param plugins: that the run was made with.
        :raises MissingPluginError: on a name that the registry does not have, where the run had plugins.
        :raises ValueError: if it is not what :meth:`plain` returned.
        """
        hints = get_type_hints(cls)
        # What runs did not have before there were these options.
        new = ("num_selected", "num_groups", "experts_in", "router", "router_scale")
        values = {**dict.fromkeys(new), **values}
        if values.keys() != hints.keys():
            raise ValueError(f"not the options of a fit: {sorted(values.keys() ^ hints.keys())} missing or unknown")
        try:
            return cls(**{name: _typed(name, values[name], hint) for name, hint in hints.items()})
        except UnknownNameError as error:
            missing = [plugin for plugin in plugins if plugin not in loaded()]
            if not missing:
                raise
            again = " ".join(f"--plugin {shlex.quote(plugin)}" for plugin in missing)
            raise MissingPluginError(f"{error}; the run was made with a plugin: give {again}") from error

    def of_seed(self, seed: int) -> dict[str, Any]:
        """What a checkpoint of one of the seeds belongs to."""
        return {**self.plain(), "seed": seed, "num_seeds": 1}

    def resumed(self, stored: dict[str, Any], explicit: set[str], plugins: list[str]) -> Self:
        """
        :param stored: of the run that goes on.
        :param plugins: that it was made with.
        :param explicit: names of the options that were given; all others are taken from the run.
        :returns: the options of the run.
        :raises ValueError: naming what was given and is different.
        """
        given = {name: value for name, value in self.plain().items() if name in explicit}
        changed = differences({name: stored.get(name) for name in given}, given)
        if changed:
            raise ValueError(
                f"a fit cannot go on with another configuration: {changed}; leave the options of the run out, or "
                "give another --out"
            )
        return type(self).of_plain(stored, plugins)


def _typed(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    # A whole number is a float, too, and JSON does not always tell them apart.
    if not isinstance(value, hint | int if float in (hint, *get_args(hint)) else hint):
        raise ValueError(f"{name} must be {getattr(hint, '__name__', hint)}, got {value!r}")
    return value
