"""The baselines that the sites of a model ask for by ``infer={"baseline": ...}``: an object, or Pyro's own options."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prob_moe.estimators.baselines import (
    Baseline,
    DecayingAverage,
    LeaveOneOut,
    Network,
    NoBaseline,
    Predicted,
    Sum,
)


@dataclass(frozen=True)
class BaselineOptions:
    """
    The keys of Pyro's ``infer["baseline"]``, and one more. Where several baselines are asked for, each is for what
    those before it leave of the cost: the decaying average, what is predicted, leave-one-out.

    :param nn_baseline: a network, called with ``nn_baseline_input``, that predicts the cost of every datapoint.
    :param nn_baseline_input: its input, without gradient.
    :param use_decaying_avg_baseline: the mean cost of earlier steps.
    :param baseline_beta: decay of that mean, in [0, 1).
    :param baseline_value: a tensor that broadcasts to one number per datapoint.
    :param use_leave_one_out_baseline: the mean over the other particles.
    """

    nn_baseline: Any = None
    nn_baseline_input: Tensor | None = None
    use_decaying_avg_baseline: bool = False
    baseline_beta: float = 0.9
    baseline_value: Tensor | None = None
    use_leave_one_out_baseline: bool = False

    @classmethod
    def read(cls, where: str, given: dict[str, Any]) -> "BaselineOptions":
        """
        :param where: what the options are for, named in errors.
        :raises ValueError: on an unknown key, or keys that contradict one another.
        """
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"{where}: unknown baseline options {unknown}; known are {sorted(cls.__dataclass_fields__)}"
            )
        options = cls(**given)
        if options.nn_baseline is not None and options.baseline_value is not None:
            raise ValueError(f"{where}: give nn_baseline or baseline_value, not both")
        if (options.nn_baseline is None) != (options.nn_baseline_input is None):
            raise ValueError(f"{where}: nn_baseline and nn_baseline_input go together")
        if not 0 <= options.baseline_beta < 1:
            raise ValueError(f"{where}: baseline_beta must be in [0, 1), got {options.baseline_beta!r}")
        return options

    def baseline(self, memory: Baseline | None) -> tuple[Baseline, Baseline | None]:
        """
        :param memory: the decaying average that an earlier step made.
        :returns: the baseline, and what has to be remembered of it.
        """
        parts: list[Baseline] = []
        if self.use_decaying_avg_baseline:
            memory = memory if isinstance(memory, DecayingAverage) else DecayingAverage(self.baseline_beta)
            memory.decay = self.baseline_beta
            parts.append(memory)
        if self.nn_baseline is not None and self.nn_baseline_input is not None:
            parts.append(Network(self.nn_baseline, self.nn_baseline_input))
        if self.baseline_value is not None:
            parts.append(Predicted(torch.as_tensor(self.baseline_value)))
        if self.use_leave_one_out_baseline:
            parts.append(LeaveOneOut())
        baseline = NoBaseline() if not parts else parts[0] if len(parts) == 1 else Sum(*parts)
        return baseline, memory if self.use_decaying_avg_baseline else None


class SiteBaselines:
    """The baselines of all sites of a model, by name, with what they remember of earlier steps."""

    def __init__(self) -> None:
        self._remembered: dict[str, Baseline] = {}
        # Read from a checkpoint, for sites that have not run yet.
        self._waiting: dict[str, dict[str, Any]] = {}

    def __call__(
        self, name: str, given: "Baseline | dict[str, Any] | None", cost: Tensor, weight: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        The value of a step, from which the baseline then learns. Shapes are those of
        :class:`~prob_moe.estimators.Baseline`.

        :param given: ``infer["baseline"]`` of the site.
        :returns: the baseline b in the shape of ``cost``, without gradient, and the loss that trains it, a scalar.
        :raises ValueError: on options or shapes that do not fit, or one particle where several are needed; it names
            the site.
        """
        baseline, memory = _read(f"site {name!r}", given, self._remembered.get(name))
        if memory is not None and name in self._waiting:
            memory.load_state_dict(self._waiting.pop(name))
        if baseline.needs_particles and cost.shape[0] < 2:
            raise ValueError(
                f"site {name!r}: a {type(baseline).__name__} baseline needs num_particles >= 2, got {cost.shape[0]}"
            )
        try:
            value, loss = baseline.value(cost, weight, present)
            baseline.update(cost, weight, present)
        except ValueError as error:
            raise ValueError(f"site {name!r}: {error}") from error
        if memory is not None and memory.state_dict():  # others, networks with their inputs, are not kept alive
            self._remembered[name] = memory
        try:
            return value.detach().expand(cost.shape), loss
        except RuntimeError:
            raise ValueError(
                f"site {name!r}: the baseline has shape {tuple(value.shape)} but must broadcast to the cost's, "
                f"{tuple(cost.shape)}"
            ) from None

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint has to keep, by site."""
        states = {name: baseline.state_dict() for name, baseline in self._remembered.items()}
        return self._waiting | {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """What the sites remember, from when they run for the next time on."""
        self._remembered, self._waiting = {}, dict(state)


def check_baseline_options(where: str, given: object) -> None:
    """
    :raises ValueError: if ``given`` is no baseline, or has unknown options.
    """
    _read(where, given, None)


def _read(where: str, given: Any, memory: Baseline | None) -> tuple[Baseline, Baseline | None]:
    if given is None:
        return NoBaseline(), None
    if isinstance(given, dict):
        return BaselineOptions.read(where, given).baseline(memory)
    if isinstance(given, Baseline):
        return given, given
    raise ValueError(
        f"{where}: baseline must be a Baseline object, such as DecayingAverage(), or a dict of Pyro's options, got "
        f"{given!r}"
    )
