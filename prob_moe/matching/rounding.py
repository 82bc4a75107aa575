"""Draw an assignment with prescribed marginals that never exceeds capacity."""

import torch
from torch import Tensor

from prob_moe.matching._capacity import capacity_of_problems
from prob_moe.matching._compiled import leaves_torch
from prob_moe.matching._forest import round_batch


@leaves_torch
def dependent_rounding(
    marginals: Tensor, *, capacity: int | Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draw z with P(z_i = j) = r_ij exactly and loads that differ from Σ_i r_ij by less than 1.

    Datapoint i is dropped, z_i = −1, with probability 1 − Σ_j r_ij. Expert j receives ⌊Σ_i r_ij⌋ or ⌈Σ_i r_ij⌉
    datapoints, never more than c where Σ_i r_ij <= c, and the number of dropped datapoints is rounded likewise.

    Rows stream in random order through a forest of at most k open rows; each step moves probability along a cycle,
    by a random amount of mean zero (Gandhi, Khuller, Parthasarathy & Srinivasan 2006). No entry is snapped to 0 or 1,
    so the marginals hold to the rounding of float64. Sums within the rounding of their dtype of an integer count as
    that integer. O(nk) moves of O(k) at worst; compiled, parallel over the batch, on the CPU.

    All randomness is one call of ``torch.rand`` in float64 on the generator's device, by default torch's generator
    of the CPU: ``torch.manual_seed`` determines the draw, on whatever device ``marginals`` live.

    :param marginals: r, (\\*batch, n, k) float32 or float64, entries >= 0, row sums <= 1.
    :param capacity: c, a positive int or a long tensor (\\*batch); columns whose sum exceeds it by no more than the
        rounding of their dtype are scaled down to c. Wanted for float32 marginals, where a sum of 32.00001 could
        otherwise become 33; None leaves the columns free.
    :param generator: source of the randomness.
    :returns: long (\\*batch, n), on the device of ``marginals``: the expert, or −1 where dropped.
    :raises ValueError: if the marginals have the wrong type or shape, are negative or nan, or exceed a bound.

    >>> _ = torch.manual_seed(0)
    >>> z = dependent_rounding(torch.full((6, 3), 1 / 3, dtype=torch.float64))
    >>> z.bincount()
    tensor([2, 2, 2])
    """
    if marginals.dtype not in (torch.float32, torch.float64) or marginals.dim() < 2 or 0 in marginals.shape[-2:]:
        raise ValueError(
            f"marginals must be float32 or float64 of shape (*batch, n, k) with n, k >= 1, got {marginals.dtype} of "
            f"shape {tuple(marginals.shape)}"
        )
    *batch, n, k = marginals.shape
    r = marginals.detach().to("cpu", torch.float64).contiguous()
    # Entries may carry the rounding of log and exp; the sums add their own.
    rounding = 64 * torch.finfo(marginals.dtype).eps + n * torch.finfo(torch.float64).eps
    if not bool((r >= 0).all()):
        raise ValueError("marginals must be nonnegative numbers; some are negative or nan")
    rows = r.sum(-1, keepdim=True)
    if bool((rows > 1 + rounding).any()):
        raise ValueError(
            f"marginals must have row sums of at most 1, got {rows.max().item()}; divide such rows by them"
        )
    r = r / rows.clamp(min=1.0)
    if capacity is not None:
        slots = capacity_of_problems(capacity, tuple(batch)).double()[..., None, None]
        columns = r.sum(-2, keepdim=True)
        excess = columns / slots
        if bool((excess > 1 + rounding).any()):
            worst = int(excess.argmax())
            raise ValueError(
                f"marginals must have column sums of at most capacity {int(slots.flatten()[worst // k])}, got "
                f"{columns.flatten()[worst].item()}; minimum_variance_marginals and router_marginals return such"
            )
        r = r * excess.reciprocal().clamp(max=1.0)
    device = torch.device("cpu") if generator is None else generator.device
    draws = torch.rand((*batch, n + (n + 1) * k), dtype=torch.float64, device=device, generator=generator).cpu()
    draws = draws.view(-1, n + (n + 1) * k)
    order, uniforms = draws[:, :n].argsort(-1), draws[:, n:].contiguous()
    columns = torch.empty((*batch, n), dtype=torch.long)
    round_batch(r.view(-1, n, k).numpy(), order.numpy(), uniforms.numpy(), rounding, columns.view(-1, n).numpy())
    return columns.masked_fill_(columns == k, -1).to(marginals.device)
