"""Joint density of a Gumbel-Matching draw and its shadow prices, in closed form.

Perturbed scores S = φ + G with iid Gumbel(0, 1) noise have the optimal assignment Z if and only if prices v exist with
S_{i z_i} − v_{z_i} ≥ S_ij − v_j for all i, j. Given v the datapoints are independent, and the largest such prices hold
with equality along a spanning in-tree of experts. Kirchhoff's matrix-tree theorem sums over the trees:

    log p(Z, v) = Σ_i log softmax(φ_i − v)_{z_i} + log det L(v)_free,
    L = diag(A 1) − A,   A_ab = Σ_{i: z_i = a} softmax(φ_i − v)_b   for a ≠ b.

Assignments are long tensors with entries 0 … k−1, and −1 where the datapoint is absent (padding).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prob_moe.numerics._capacity import capacity_of_problems


class PriceStructure(NamedTuple):
    """Which prices of an assignment are coordinates of the density, and which experts can exchange datapoints.

    :param component: label of the expert's component of the exchange graph: its smallest expert, long (\\*batch, k).
    :param free: True where the price is a coordinate of the density, False where it is fixed at 0, (\\*batch, k).
    :param bounded: True where a coordinate is restricted to v ≥ 0, (\\*batch, k).
    :param feasible: whether the assignment has positive probability at all, (\\*batch,).
    """

    component: Tensor
    free: Tensor
    bounded: Tensor
    feasible: Tensor


def price_structure(logits: Tensor, assignment: Tensor, capacity: int | Tensor) -> PriceStructure:
    """Components and coordinates of the shadow prices of ``assignment``.

    Edge a → b of the exchange graph means that expert a could give something up in favour of b: a datapoint at a whose
    logit for b is finite, or a free slot (which fits everywhere). Two feasible assignments differ by a set of cycles
    of this graph, and a cycle never leaves a strongly connected component. Edges between components are therefore
    irrelevant to optimality, as in the Dulmage–Mendelsohn decomposition of a bipartite graph: Z is optimal iff it is
    optimal in each component, and these events are independent. All experts with a free slot share one component
    (their slots reach everything); there the price of an expert with a free slot is 0 and full experts have v ≥ 0.
    Every other component is full; its smallest expert is the root, at price 0.

    :param logits: router logits φ, (\\*batch, n, k), −inf where a pair is forbidden.
    :param assignment: expert of each datapoint, long, (\\*batch, n), −1 where absent; its batch broadcasts with that
        of ``logits``.
    :param capacity: datapoints an expert can hold, a positive int or a long tensor (\\*batch).
    :returns: a :class:`PriceStructure`. Cost O(nk), plus O(nk² + k³ log k) if any logit is −inf.
    :raises ValueError: for wrong shapes, dtypes, capacity, an entry that names no expert, or logits that are NaN or
        +inf.
    """
    _check(logits, assignment)
    finite = torch.isfinite(logits)
    masked = not bool(finite.all())
    if masked and bool((~finite & (logits != -torch.inf)).any()):
        raise ValueError("logits must be finite or -inf, but some are NaN or +inf; clean the router's output first.")
    num_experts = logits.shape[-1]
    batch = torch.broadcast_shapes(logits.shape[:-2], assignment.shape[:-1])
    assignment = assignment.expand(*batch, -1)
    present = assignment >= 0
    expert = assignment.clamp(min=0)
    load = torch.zeros(*batch, num_experts, dtype=torch.long, device=logits.device)
    load = load.scatter_add(-1, expert, present.long())
    room = capacity_of_problems(capacity, batch, logits.device).unsqueeze(-1) - load
    feasible = (room >= 0).all(-1)
    has_slot = room > 0
    slack = has_slot.any(-1, keepdim=True)
    index = torch.arange(num_experts, device=logits.device)
    if not masked:
        component = torch.zeros_like(load)
        free = torch.where(slack, ~has_slot, index > 0)
        return PriceStructure(component, free, free & slack, feasible)

    finite = finite.expand(*batch, -1, -1)
    chosen = finite.gather(-1, expert.unsqueeze(-1)).squeeze(-1)
    feasible = feasible & (chosen | ~present).all(-1)
    one_hot = (expert.unsqueeze(-2) == index.unsqueeze(-1)) & present.unsqueeze(-2)
    edges = one_hot.float() @ finite.float() > 0
    edges = edges | has_slot.unsqueeze(-1) | torch.eye(num_experts, dtype=torch.bool, device=logits.device)
    reach = _transitive_closure(edges)
    mutual = reach & reach.transpose(-1, -2)
    component = torch.where(mutual, index, num_experts).amin(-1)
    reaches_slot = (reach & has_slot.unsqueeze(-2)).any(-1)
    free = torch.where(reaches_slot, ~has_slot, index != component)
    return PriceStructure(component, free, free & reaches_slot, feasible)


def price_log_density(logits: Tensor, assignment: Tensor, prices: Tensor, capacity: int | Tensor) -> Tensor:
    """Joint log-density log p(Z, v) of the optimal assignment and its shadow prices under Gumbel noise, in closed form.

    Lebesgue measure on the coordinates that :func:`price_structure` calls free: all experts but the root where every
    slot is taken, else the full experts, on v ≥ 0. The softmax runs over the component of z_i, so forbidden pairs
    (−inf logits) make the density a product over components. Cost O(nk² + k³) in matrix products, O(nk) exponentials;
    differentiable in ``logits`` and ``prices``. The determinant is eliminated without subtractions, in float64, and is
    accurate however weakly two groups of experts are linked.

    :param logits: router logits φ, (\\*batch, n, k), −inf where a pair is forbidden.
    :param assignment: expert of each datapoint, long, (\\*batch, n), −1 where absent.
    :param prices: shadow prices v, (\\*batch, k). The batches of all three broadcast.
    :param capacity: datapoints an expert can hold, a positive int or a long tensor (\\*batch).
    :returns: nats, (\\*batch,); −inf where the assignment or the prices lie outside the support.
    :raises ValueError: for wrong shapes, dtypes or capacity, or logits that are NaN or +inf.

    >>> logits = torch.zeros(2, 2)
    >>> price_log_density(logits, torch.tensor([0, 1]), torch.zeros(2), capacity=1).exp()  # 1/2 · 1/2 · 1/2
    tensor(0.1250)
    """
    structure = price_structure(logits, assignment, capacity)
    num_experts = logits.shape[-1]
    if prices.shape[-1:] != (num_experts,) or not prices.is_floating_point():
        raise ValueError(
            f"prices must be floating point of shape (*batch, {num_experts}), one price per expert, "
            f"got {prices.dtype} of shape {tuple(prices.shape)}."
        )
    eps = torch.finfo(prices.dtype).eps
    tolerance = 64 * eps * (1 + prices.detach().abs().amax(-1, keepdim=True))
    outside = torch.where(structure.free, structure.bounded & (prices < -tolerance), prices.abs() > tolerance)
    inside = structure.feasible & ~outside.any(-1)
    log_density = tree_log_density(reachable_logits(logits, assignment, structure), assignment, prices, structure.free)
    return torch.where(inside, log_density, -torch.inf)


def reachable_logits(logits: Tensor, assignment: Tensor, structure: PriceStructure) -> Tensor:
    """The logits with −inf for every expert outside the component of the datapoint's own expert, (\\*batch, n, k).

    Rows that cannot contribute (absent datapoints, infeasible assignments) become 0 everywhere, so that no NaN arises.
    """
    own = structure.component.gather(-1, assignment.clamp(min=0).expand(*structure.feasible.shape, -1))
    connected = own.unsqueeze(-1) == structure.component.unsqueeze(-2)
    idle = (assignment < 0).unsqueeze(-1) | ~structure.feasible[..., None, None]
    return torch.where(connected, logits, -torch.inf).masked_fill(idle, 0.0)


def tree_log_density(logits: Tensor, assignment: Tensor, prices: Tensor, free: Tensor) -> Tensor:
    """The formula of :func:`price_log_density` without checks, on logits from :func:`reachable_logits`, (\\*batch,)."""
    present = assignment >= 0
    log_probs = torch.log_softmax(logits - prices.unsqueeze(-2), -1)
    index = assignment.clamp(min=0).unsqueeze(-1)
    batch = torch.broadcast_shapes(log_probs.shape[:-2], index.shape[:-2])
    chosen = log_probs.expand(*batch, -1, -1).gather(-1, index.expand(*batch, -1, -1)).squeeze(-1)
    fit = torch.where(present, chosen, 0.0).sum(-1, dtype=torch.float64)
    experts = torch.arange(logits.shape[-1], device=logits.device)
    one_hot = ((index.transpose(-1, -2) == experts.unsqueeze(-1)) & present.unsqueeze(-2)).to(log_probs.dtype)
    exchange = (one_hot @ log_probs.exp()).double()
    return (fit + log_tree_weight(exchange, free)).to(log_probs.dtype)


def log_tree_weight(exchange: Tensor, free: Tensor) -> Tensor:
    """log det L_free of the Laplacian of ``exchange``: the log of the summed weight of all in-trees to the fixed
    experts.

    Gaussian elimination as Grassmann, Taksar & Heyman (1985, Operations Research 33) do it: experts are eliminated one
    by one and each pivot is recomputed as a sum of non-negative rates, so there is no cancellation.

    :param exchange: non-negative weights of the edges a → b, (\\*batch, k, k); the diagonal is ignored.
    :param free: True for the experts that need an edge of the tree, (\\*batch, k).
    :returns: (\\*batch,); a pivot that underflows counts as the smallest normal number, so gradients stay finite.
    """
    fixed = ~free
    sink = exchange.masked_fill(~fixed.unsqueeze(-2), 0.0).sum(-1, keepdim=True)
    inner = exchange.masked_fill(fixed.unsqueeze(-2), 0.0)
    rates = torch.cat([sink, inner], -1)
    # A fixed expert sends one unit to the sink: its pivot is 1, and nothing flows into it.
    to_sink = torch.zeros(exchange.shape[-1] + 1, dtype=exchange.dtype, device=exchange.device)
    to_sink[0] = 1.0
    rates = torch.where(fixed.unsqueeze(-1), to_sink, rates)
    tiny = torch.finfo(exchange.dtype).tiny
    total = torch.zeros((), dtype=exchange.dtype, device=exchange.device)
    for last in range(exchange.shape[-1] - 1, -1, -1):
        row = rates[..., last, : last + 1]
        pivot = row.sum(-1, keepdim=True).clamp(min=tiny)
        total = total + pivot.squeeze(-1).log()
        share = row / pivot
        rates = rates[..., :last, : last + 1] + rates[..., :last, last + 1 :] * share.unsqueeze(-2)
    return total


def _transitive_closure(edges: Tensor) -> Tensor:
    """Reachability by repeated squaring of a boolean matrix with True diagonal, (\\*batch, k, k)."""
    reach = edges
    length = 1
    while length < edges.shape[-1]:
        reach = reach.float() @ reach.float() > 0
        length *= 2
    return reach


def _check(logits: Tensor, assignment: Tensor) -> None:
    if logits.dim() < 2 or not logits.is_floating_point() or logits.shape[-1] < 1:
        raise ValueError(
            f"logits must be floating point of shape (*batch, n, k), got {logits.dtype} of shape {tuple(logits.shape)}."
        )
    n, k = logits.shape[-2:]
    if assignment.dtype != torch.long or assignment.shape[-1:] != (n,):
        raise ValueError(
            f"assignment must be long of shape (*batch, {n}), one expert per datapoint, "
            f"got {assignment.dtype} of shape {tuple(assignment.shape)}."
        )
    if assignment.numel() and not bool(((assignment >= -1) & (assignment < k)).all()):
        raise ValueError(
            f"assignment must hold experts 0 to {k - 1}, or -1 for an absent datapoint, "
            f"got entries from {int(assignment.min())} to {int(assignment.max())}."
        )
