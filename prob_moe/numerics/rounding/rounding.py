"""Draw an assignment with prescribed marginals that never exceeds capacity."""

import torch
from torch import Tensor

from prob_moe._transforms import without_derivative
from prob_moe.numerics._capacity import capacity_of_problems
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.numerics.rounding._round import round_batch


@leaves_torch
@without_derivative
def dependent_rounding(
    marginals: Tensor,
    *,
    num_selected: int | None = None,
    capacity: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw z with P(z_i = j) = r_ij exactly and loads that differ from Σ_i r_ij by less than 1.

    Datapoint i is dropped, z_i = −1, with probability 1 − Σ_j r_ij. Expert j receives ⌊Σ_i r_ij⌋ or ⌈Σ_i r_ij⌉
    datapoints, never more than c where Σ_i r_ij <= c, and the number of dropped datapoints is rounded likewise.

    With ``num_selected`` = m, a set of distinct experts is drawn for each datapoint, P(j in the set of i) = r_ij, of
    size ⌊Σ_j r_ij⌋ or ⌈Σ_j r_ij⌉. Which experts go together is the algorithm's own affair and no function of r: the
    probabilities of pairs may change between versions, the marginals do not.

    Rows stream in random order, and each step moves probability along a cycle, by a random amount of mean zero (Gandhi,
    Khuller, Parthasarathy & Srinivasan 2006): cycles of four until no two open rows share two experts, then those of a
    forest. No entry is snapped to 0 or 1, so the marginals hold to the rounding of float64. Sums within the rounding of
    their dtype of an integer count as that integer. O(nk) short moves, and O(k²) moves of O(k) at worst; compiled,
    parallel over the batch, on the CPU.

    All randomness is one call of ``torch.rand`` in float64 on the generator's device, by default torch's generator
    of the CPU: ``torch.manual_seed`` determines the draw, on whatever device ``marginals`` live.

    :param marginals: r, (\\*batch, n, k) float32 or float64, entries from 0 to 1, row sums <= m.
    :param num_selected: m, the most experts per datapoint, from 1 to k. None means 1, and has a result of its own form.
    :param capacity: c, a positive int or a long tensor (\\*batch); columns whose sum exceeds it by no more than the
        rounding of their dtype are scaled down to c. Wanted for float32 marginals, where a sum of 32.00001 could
        otherwise become 33; None leaves the columns free.
    :param generator: source of the randomness.
    :returns: long (\\*batch, n), on the device of ``marginals``: the expert, or −1 where dropped. With ``num_selected``
        long (\\*batch, m, n): experts ascending, −1 after them where fewer were drawn.
    :raises ValueError: if the marginals have the wrong type or shape, are negative or nan, or exceed a bound.

    >>> _ = torch.manual_seed(0)
    >>> z = dependent_rounding(torch.full((6, 3), 1 / 3, dtype=torch.float64))
    >>> z.bincount()
    tensor([2, 2, 2])
    >>> dependent_rounding(torch.full((3, 3), 2 / 3, dtype=torch.float64), num_selected=2).flatten().bincount()
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
    least, largest = (bound.item() for bound in r.aminmax()) if r.numel() else (0.0, 0.0)
    if not least >= 0:
        raise ValueError("marginals must be nonnegative numbers; some are negative or nan")
    most = 1 if num_selected is None else num_selected
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= k:
        raise ValueError(f"num_selected must be an int from 1 to k = {k}, got {num_selected!r}")
    rows = r.sum(-1, keepdim=True)
    if bool((rows > most * (1 + rounding)).any()):
        raise ValueError(
            f"marginals must have row sums of at most {most}, got {rows.max().item()}; divide such rows by them"
        )
    if largest > 1 + rounding:
        raise ValueError(f"marginals must be at most 1, got {largest}")
    if largest > 1:
        r = r.clamp(max=1.0)
    whole = rows.round().clamp(min=1.0)  # sums above an integer by their rounding are that integer
    above = (rows > whole) & (rows <= whole * (1 + rounding))
    if bool(above.any()):
        r = torch.where(above, r * (whole / rows), r)
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
        if bool((excess > 1).any()):
            r = r * excess.reciprocal().clamp(max=1.0)
    device = torch.device("cpu") if generator is None else generator.device
    draws = torch.rand((*batch, n + (n + 1) * k), dtype=torch.float64, device=device, generator=generator).cpu()
    draws = draws.view(-1, n + (n + 1) * k)
    order, uniforms = draws[:, :n].argsort(-1), draws[:, n:].contiguous()
    experts = torch.empty((*batch, most, n), dtype=torch.long)
    round_batch(r.view(-1, n, k).numpy(), order.numpy(), uniforms.numpy(), rounding, experts.view(-1, most, n).numpy())
    return (experts.squeeze(-2) if num_selected is None else experts).to(marginals.device)
