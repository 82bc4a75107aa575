"""Random numbers of a draw, from torch's own generator, one given, or one for every problem of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prob_moe._transforms import refuse_tracing
from prob_moe.distributions.keyed_draws import keyed_generators

#: None for torch's generator, one for the whole draw, or one for every element of sample and batch shape, in order
Generators = torch.Generator | Sequence[torch.Generator] | None


def gumbel_noise_like(tensor: Tensor, generator: Generators = None) -> Tensor:
    """
    Standard Gumbel noise of the shape and device of ``tensor``, in its dtype or float32 if that is coarser.

    :param tensor: (*, n, k).
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    exponential = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    for part, source in _parts(exponential, generator, event_dim=2):
        part.exponential_(generator=source)
    # A float32 exponential can round to 0, whose Gumbel variable would be +inf.
    return exponential.clamp_(min=torch.finfo(dtype).tiny).log_().neg_()


def uniform_noise(
    shape: torch.Size,
    device: torch.device,
    generator: Generators = None,
    *,
    event_dim: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """
    Uniform variables on [0, 1).

    :param shape: (*, count), with ``count`` numbers for every problem.
    :param event_dim: how many dimensions at the end belong to one problem.
    """
    noise = torch.empty(shape, dtype=dtype, device=device)
    for part, source in _parts(noise, generator, event_dim=event_dim):
        part.uniform_(generator=source)
    return noise


def _parts(noise: Tensor, generator: Generators, event_dim: int) -> list[tuple[Tensor, torch.Generator | None]]:
    refuse_tracing("a draw of random numbers")
    lead = noise.shape[: noise.dim() - event_dim]
    if generator is None:
        generator = keyed_generators(lead, noise.device)
    if generator is None or isinstance(generator, torch.Generator):
        return [(noise, generator)]
    check_generators(generator, lead)
    return list(zip(noise.view(lead.numel(), *noise.shape[len(lead) :]).unbind(), generator))


def check_generators(generators: Sequence[torch.Generator], lead: torch.Size) -> None:
    """
    :param lead: sample and batch shape.
    :raises ValueError: unless there is one generator for every problem.
    """
    if len(generators) != lead.numel():
        raise ValueError(
            f"generator must be one torch.Generator, or one for each of the {lead.numel()} elements of sample and "
            f"batch shape {tuple(lead)}, got {len(generators)}"
        )
