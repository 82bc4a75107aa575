"""Hash routing: the datapoint's identity decides, and nothing is learnt."""

import torch
from torch import Tensor

from prob_moe.rules.base import RoutingRule, SparseRouting

# The constants of SplitMix64 (Steele, Lea & Flood 2014), as signed 64-bit integers: torch's wrap around like unsigned.
_STEP = -0x61C8864680B583EB
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15


class HashRouting(RoutingRule):
    r"""
    Every datapoint goes to the expert that a fixed hash gives to its identity, for example its token:
    :math:`y_i = f_e(x_i)`, :math:`e = \mathrm{hash}(\mathrm{identity}_i) \bmod k`.

    The logits give shape, dtype and number of experts; their values play no part, and a router gets no gradient.
    Training and serving agree. Balance depends on the data: a frequent identity loads its expert.

    **Objective:** its own deterministic model, :math:`L(f_e)`; with nothing to estimate it has no bias or variance.

    **Source:** Roller, Sukhbaatar, Szlam & Weston (2021), "Hash Layers for Large Sparse Models"; compared in Clark et
    al. (2022), "Unified Scaling Laws for Routed Language Models". The hash is that of SplitMix64, so no table of
    identities is needed.

    :param seed: selects the hash, an int. Equal seeds give equal maps on every device.
    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if the seed is no int, or at the call the identity is missing or does not fit.

    >>> routing = HashRouting()(torch.zeros(4, 3), identity=torch.tensor([7, 8, 7, 9]))
    >>> bool(routing.assignment[0, 0] == routing.assignment[0, 2])
    True
    """

    objective = "deterministic L(f_e), e fixed"

    def __init__(
        self,
        *,
        seed: int = 0,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be an int, got {seed!r}")
        self.seed = seed

    def forward(self, logits: Tensor, *, mask: Tensor | None = None, identity: Tensor | None = None) -> SparseRouting:
        """
        :param logits: float (*batch, n, k), whose values play no part.
        :param mask: bool, broadcastable to (*batch, n), False for padding.
        :param identity: what a datapoint is, an integer tensor that broadcasts to (*batch, n).
        """
        logits, mask = self.prepare(logits, mask)
        shape = logits.shape[:-1]
        if identity is None or identity.is_floating_point() or identity.dtype == torch.bool:
            got = "None" if identity is None else identity.dtype
            raise ValueError(f"identity must be an integer tensor (*batch, n) = {tuple(shape)}, got {got}")
        try:
            identity = identity.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"identity of shape {tuple(identity.shape)} does not broadcast to (*batch, n) = {tuple(shape)}"
            ) from None
        choices = self.choose(identity, logits.shape[-1]).unsqueeze(-2)
        return self.to_experts(logits, mask, choices, logits.new_ones(choices.shape))

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.new_ones(choices.shape), None

    def choose(self, identity: Tensor, num_experts: int) -> Tensor:
        """:returns: the expert of every identity, long, of the same shape."""
        seed = _mix(torch.tensor(_signed(self.seed), device=identity.device))
        # The remainder of a negative number by a positive one is positive in torch.
        return _mix(identity.long() + seed) % num_experts


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function: a bijection of 64-bit integers that flips half the bits for every bit flipped."""
    x = x + _STEP
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros, which torch's does not for negative numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The lowest 64 bits of an int, as a signed integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
