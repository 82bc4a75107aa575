"""What several particles say, side by side."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass
class OfParticle:
    """A record of what one trace says, in tensors and dictionaries of tensors."""

    #: fields that are the same for all particles: one network, for one, predicts for all
    common: ClassVar[frozenset[str]] = frozenset()


def stack_particles(parts: list[Any]) -> Any:
    """
    :param parts: for every particle a tensor, a record of tensors, or a dictionary of such.
    :returns: the same with all tensors stacked in front.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(parts)
    if isinstance(first, OfParticle):
        names = [field.name for field in fields(first) if field.name not in first.common]
        return replace(first, **{name: stack_particles([getattr(part, name) for part in parts]) for name in names})
    return {key: stack_particles([part[key] for part in parts]) for key in first}
