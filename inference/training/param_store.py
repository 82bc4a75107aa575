"""Pyro's parameter store, as something that can be written down."""

from typing import Any

import pyro
from pyro.distributions import constraints
from torch import nn


def param_store_state(module: nn.Module) -> dict[str, Any]:
    """
    :param module: Pyro registers the parameters of the modules that it runs, so most entries of the store *are*
        parameters of this one. Of those the name is kept; the module has the values.
    :returns: names of the module's parameters, and the unconstrained values and constraints of all others, by entry.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    store = pyro.get_param_store().get_state()
    state: dict[str, Any] = {"of the module": {}, "others": {}}
    for entry, value in store["params"].items():
        if id(value) in names:
            state["of the module"][entry] = names[id(value)]
        else:
            constraint = store["constraints"][entry]
            state["others"][entry] = (value.detach(), type(constraint).__name__, dict(vars(constraint)))
    return state


def set_param_store(module: nn.Module, state: dict[str, Any]) -> None:
    """
    Put the store back to what it was, its entries tied to the parameters of the module again.

    :raises KeyError: if the module lacks one of them.
    """
    parameters = dict(module.named_parameters())
    params = {entry: parameters[name] for entry, name in state["of the module"].items()}
    kinds = dict.fromkeys(params, constraints.real)
    for entry, (value, kind, arguments) in state["others"].items():
        params[entry] = value.requires_grad_()
        kinds[entry] = _constraint(kind, arguments)
    pyro.clear_param_store()
    pyro.get_param_store().set_state({"params": params, "constraints": kinds})


def _constraint(kind: str, arguments: dict[str, Any]) -> Any:
    classes = {type(c).__name__: type(c) for c in vars(constraints).values() if isinstance(c, constraints.Constraint)}
    # Those with arguments are exported as classes, under names of their own.
    classes |= {c.__name__: c for c in vars(constraints).values() if isinstance(c, type)}
    return classes[kind](**arguments)
