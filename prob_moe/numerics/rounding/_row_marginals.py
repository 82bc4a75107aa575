"""The minimum-variance marginals where experts have no limit: every row by itself."""

import torch
from torch import Tensor


def row_marginals(p: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """r = min(1, p / sqrt(α_i)) with row sums m, and α.

    A row takes some of its likeliest experts for certain and the others in proportion to p; what is left of p is summed
    from the small end, never by subtraction from 1. A row that allows m experts at most takes all of them.

    :param p: (\\*batch, n, k), 0 where forbidden.
    :returns: r (\\*batch, n, k) and α (\\*batch, n); 0 in rows that allow nothing.
    """
    ordered = p.sort(-1, descending=True).values
    rest = ordered.flip(-1).cumsum(-1).flip(-1)[..., :num_selected]
    certain = torch.arange(num_selected, dtype=p.dtype, device=p.device)
    scale = (num_selected - certain) / rest  # of p, if so many are certain
    fits = scale * ordered[..., :num_selected] <= 1.0
    first = fits.int().argmax(-1, keepdim=True)
    few = (p > 0.0).sum(-1, keepdim=True) <= num_selected
    scale = scale.gather(-1, first)
    r = torch.where(few, (p > 0.0).to(p.dtype), (scale * p).clamp(max=1.0))
    least = torch.where(p > 0.0, p, torch.inf).amin(-1, keepdim=True)
    root = torch.where(few, least, scale.reciprocal())
    return r, root.masked_fill(root == torch.inf, 0.0).square().squeeze(-1)
