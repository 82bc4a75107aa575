"""What torch is doing with a program that runs: recording it, or differentiating it. Private interfaces of torch live
here, and nowhere else."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._C._functorch import TransformType, get_interpreter_stack

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
