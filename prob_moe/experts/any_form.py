"""Experts of any form where the batched ones fit: their own modules, between dispatch and combine."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.overrides import handle_torch_function, has_torch_function

from prob_moe.experts.base import Experts


class SlotExperts(Experts):
    """
    Base of experts that know how to process slots: what routings use of a
    :class:`~prob_moe.experts.BatchedExperts`, for experts of another form. A residual connection is their own affair.

    :param num_experts: k.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    @abstractmethod
    def process(self, inputs: Tensor) -> Tensor:
        """
        :param inputs: (k, c, d).
        :returns: (k, c, out).
        """

    def forward_dispatched(self, inputs: Tensor) -> Tensor:
        """
        :raises ValueError: if the experts change the number of experts or slots.
        """
        *batch, k, c, d = inputs.shape
        rows = inputs.movedim(-3, 0).reshape(k, -1, d)
        out = _process(self, rows)
        if out.dim() != 3 or out.shape[:2] != rows.shape[:2]:
            raise ValueError(
                f"experts must return (k, c, out) for inputs (k, c, d) = {tuple(rows.shape)}, got {tuple(out.shape)}"
            )
        return out.reshape(k, *batch, c, out.shape[-1]).movedim(0, -3)

    def dense(self, x: Tensor) -> Tensor:
        """
        Every expert on every datapoint.

        :param x: (*batch, n, d).
        :returns: (*batch, n, k, out).
        """
        copies = x.unsqueeze(-3).expand(*x.shape[:-2], self.num_experts, *x.shape[-2:])
        return self.forward_dispatched(copies).movedim(-3, -2)


def _process(experts: SlotExperts, inputs: Tensor) -> Tensor:
    # Modules, and vmap, need not know of tensor subclasses, such as those that carry Pyro's provenance.
    if has_torch_function((inputs,)):
        subclassed: Tensor = handle_torch_function(_process, (inputs,), experts, inputs)
        return subclassed
    return experts.process(inputs)


class ModuleExperts(SlotExperts):
    """
    One module for all experts.

    :param module: (k, c, d) -> (k, c, out), rows of an expert each by itself.
    :param num_experts: k.
    """

    def __init__(self, module: nn.Module, num_experts: int) -> None:
        super().__init__(num_experts)
        self.module = module

    def process(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.module(inputs)
        return out


class StackedExperts(SlotExperts):
    """
    k modules of one form, which run as one: their parameters are stacked, (k, ...) each, and are the stack's own from
    then on. Dropout in them draws for each expert anew.

    :param modules: from (c, d) to (c, out), alike in everything but the values of their parameters.
    :raises ValueError: if there are none, or their forms differ.

    >>> experts = StackedExperts([nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(5)])
    >>> experts(torch.randn(6, 4), torch.tensor([0, 4, 4, 1, ~1, 2]), capacity=2).shape
    torch.Size([6, 3])
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        modules = list(modules)
        _check_forms(modules)
        super().__init__(len(modules))
        parameters, buffers = stack_module_state(modules)
        # Registered names have no dots.
        self._names = {name: name.replace(".", "__") for name in (*parameters, *buffers)}
        for name, value in parameters.items():
            trainable = dict(modules[0].named_parameters())[name].requires_grad
            self.register_parameter(self._names[name], nn.Parameter(value.detach().clone(), trainable))
        for name, value in buffers.items():
            self.register_buffer(self._names[name], value)
        # In a tuple, so that it is no submodule: it has a form, and no values.
        self._form = (copy.deepcopy(modules[0]).to("meta"),)

    def train(self, mode: bool = True) -> "StackedExperts":
        self._form[0].train(mode)
        return super().train(mode)

    def process(self, inputs: Tensor) -> Tensor:
        state = {name: getattr(self, registered) for name, registered in self._names.items()}

        def expert(state: dict[str, Tensor], rows: Tensor) -> Any:
            return functional_call(self._form[0], state, (rows,))

        out: Tensor = torch.vmap(expert, randomness="different")(state, inputs)
        return out


def _check_forms(modules: list[nn.Module]) -> None:
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        kinds = [type(module).__name__ for module in modules]
        raise ValueError(f"experts must be modules, one or more, got {kinds}")
    first = _form(modules[0])
    for index, module in enumerate(modules):
        if _form(module) != first:
            raise ValueError(
                f"experts must be of one form to be stacked, but expert {index} is {_describe(module)} and expert 0 is "
                f"{_describe(modules[0])}; give one module (k, c, d) -> (k, c, out) for experts that differ"
            )


def _form(module: nn.Module) -> tuple[object, ...]:
    state = [*module.named_parameters(), *module.named_buffers()]
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in state)
    return (tuple(type(part) for part in module.modules()), repr(module), shapes)


def _describe(module: nn.Module) -> str:
    return " ".join(repr(module).split())
