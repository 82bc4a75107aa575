"""What torch is doing with a program that runs: recording it, or differentiating it. Private interfaces of torch live
here, and nowhere else."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
)
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")


def refuse_tracing(what: str) -> None:
    """
    Refuse what ``torch.jit.trace`` would record as a constant: a draw, or anything computed outside of torch.

    :raises NotImplementedError: while tracing.
    """
    if torch._C._get_tracing_state() is not None:
        raise NotImplementedError(
            f"{what} cannot be traced: torch.jit.trace would record one result and repeat it for ever; run it outside "
            "of the trace, and train with an ELBO that does not compile, Trace_ELBO instead of JitTrace_ELBO for one"
        )


def untraced(draw: Callable[..., R]) -> Callable[..., R]:
    """A method that draws, refused while tracing."""

    @functools.wraps(draw)
    def refused_or_drawn(self: Any, *args: Any, **kwargs: Any) -> R:
        refuse_tracing(f"a draw of {type(self).__name__}")
        return draw(self, *args, **kwargs)

    return refused_or_drawn


def nested_forward_mode() -> bool:
    """
    Whether forward mode runs inside forward mode, as in ``jacfwd(jacfwd(f))``. There torch takes the ``jvp`` of an
    autograd.Function for a constant, and derivatives of second order come out as zero without a word.
    """
    stack = get_interpreter_stack()
    return stack is not None and sum(level.key() == TransformType.Jvp for level in stack) > 1


def transforming() -> bool:
    """Whether a transform of torch.func or forward mode runs, which wants operations that torch knows all about."""
    return bool(get_interpreter_stack()) or forward_ad._current_level >= 0


def carries_derivative(tensor: Tensor) -> bool:
    """Whether somebody may ask for a derivative through a tensor, in reverse or in forward mode."""
    if tensor.requires_grad or torch.compiler.is_compiling():
        return tensor.requires_grad
    if get_interpreter_stack():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def without_derivative(function: Callable[P, R]) -> Callable[P, R]:
    """
    A function outside of torch whose results are constants to every derivative: it is called with the plain tensors
    that torch.func has wrapped.

    :raises NotImplementedError: under ``torch.vmap``.
    """

    @functools.wraps(function)
    def constant(*args: P.args, **kwargs: P.kwargs) -> R:
        if not get_interpreter_stack():
            return function(*args, **kwargs)
        plain: Any = [_plain(value, function.__name__) for value in args]
        named: Any = {name: _plain(value, function.__name__) for name, value in kwargs.items()}
        with temporarily_clear_interpreter_stack():  # else the results of every operation are wrapped again
            return function(*plain, **named)

    return constant


def _plain(value: Any, name: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    while is_functorch_wrapped_tensor(value):
        if is_batchedtensor(value):
            raise NotImplementedError(f"{name} cannot be mapped by torch.vmap; it takes batches itself, (*batch, n, k)")
        value = get_unwrapped(value)
    return value
