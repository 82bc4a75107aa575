"""Where tensors live, and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch

from inference.tasks import Task


class Dtype(StrEnum):
    """Floating-point types to fit in."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def torch(self) -> torch.dtype:
        return torch.float32 if self is Dtype.FLOAT32 else torch.float64


@contextmanager
def default_dtype(dtype: Dtype) -> Iterator[None]:
    """Data and parameters that are made inside are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype.torch)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_device(name: str) -> torch.device:
    """
    :raises ValueError: on a name that torch does not know, or a device that is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); --device cpu always can") from None
    return device


def move(task: Task, device: torch.device) -> None:
    """Send the data of a task to a device; the model follows."""
    for part in ("train", "validation", "test"):
        x, y = getattr(task, part)
        setattr(task, part, (x.to(device), y.to(device)))
