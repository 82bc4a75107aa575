"""A small language model on bytes, whose feed-forward blocks are mixtures of experts."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from models.text import NUM_BYTES
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.layer.base import RoutedExperts


class CausalAttention(nn.Module):
    """
    Multi-head attention on what came before, with a normalised input: (*, T, d) -> (*, T, d).

    :param num_features: d.
    :param num_heads: divides d.
    """

    def __init__(self, num_features: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(num_features)
        self.inputs = nn.Linear(num_features, 3 * num_features)
        self.output = nn.Linear(num_features, num_features)

    def forward(self, h: Tensor) -> Tensor:
        heads = self.inputs(self.norm(h)).unflatten(-1, (3 * self.num_heads, -1)).transpose(-2, -3)
        queries, keys, values = heads.chunk(3, -3)
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.output(mixed.transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """The block that experts replace: one hidden layer on a normalised input, (*, d) -> (*, d)."""

    def __init__(self, num_features: int, hidden_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features)
        self.hidden = nn.Linear(num_features, hidden_features)
        self.output = nn.Linear(hidden_features, num_features)

    def forward(self, h: Tensor) -> Tensor:
        return self.output(self.hidden(self.norm(h)).relu())


class ByteTables(nn.Module):
    r"""
    The last bytes, a table each: :math:`\sum_{l < L} E_l[b_{t-l}]`, long (*, T) -> (*, T, features).

    :param num_features: of a row.
    :param num_bytes: L, the byte itself and those before it; before the first byte there are zero bytes.
    :param scale: standard deviation of the sum at the start, whose entries are normal.
    """

    def __init__(self, num_features: int, num_bytes: int, scale: float) -> None:
        super().__init__()
        self.tables = nn.ModuleList()
        for _ in range(num_bytes):
            rows = scale / num_bytes**0.5 * torch.randn(NUM_BYTES, num_features)
            self.tables.append(nn.Embedding.from_pretrained(rows, freeze=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([table(pad(x, (lag, 0))[..., : x.shape[-1]]) for lag, table in enumerate(self.tables)]).sum(
            0
        )


class ExpertBlock(RoutedExperts, PyroModule):
    """
    A feed-forward block of experts, whose router sees bytes through tables of its own.

    Own tables keep the noise of the score function out of attention, experts and embeddings, where it would drown
    everything else. At the start the logits have a standard deviation well above 1: routing begins as a nearly fixed
    function of the bytes, as in hash routing (Roller et al. 2021), on which experts can specialise, and is trained
    from there.

    :param name: of the assignment site.
    :param router: long (*, T) -> logits (*, T, k), each from its byte and those before.
    :param experts: from d to d features.
    :param assignment: the assignment distribution.
    :param capacity_factor: capacity = ceil(capacity_factor * T / k), in every sequence.
    :param baseline: Pyro's ``infer["baseline"]`` options.
    """

    def __init__(
        self,
        name: str,
        router: nn.Module,
        experts: BatchedExperts,
        assignment: Callable[..., AssignmentDistribution],
        capacity_factor: float,
        baseline: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(router, experts, assignment, capacity_factor=capacity_factor, baseline=baseline)
        self.name = name
        self.norm = nn.LayerNorm(experts.in_features)

    def forward(self, h: Tensor, x: Tensor, *, everybody: bool = False) -> Tensor:
        """
        Draw the assignment of every sequence, and let the experts work; a dropped byte's output is 0.

        :param h: (*, B, T, d).
        :param x: bytes, long (B, T).
        :param everybody: whether a dropped byte is processed too, by the expert that its router chose.
        """
        site = self.site(self.name, h, self.router(x))
        return self.process(self.norm(h), site.assignment, site.law, everybody=everybody)

    def unlimited(self, h: Tensor, x: Tensor, sample: bool) -> tuple[Tensor, Tensor]:
        """:returns: outputs (B, T, d), and every byte's expert by its own router, long (B, T)."""
        logits = self.router(x)
        z = dist.Categorical(logits=logits).sample() if sample else logits.argmax(-1)
        everybody = z.flatten()
        capacity = int(everybody.bincount().max())
        return self.experts(self.norm(h).flatten(0, -2), everybody, capacity=capacity).view(h.shape), z


class LanguageModel(PyroModule):
    r"""
    A causal transformer on bytes with an assignment site in some of its feed-forward blocks:

    .. math::
        Z^l_s \sim \mathrm{assignment}(\mathrm{router}^l(b_s)),\qquad
        b_{s,t+1} \sim \mathrm{Categorical}(\mathrm{logits}(b_{s,\le t}, Z_s)).

    Sites: ``assignment_1``, ... in ``plate("sequences", B, dim=-2)``, each with batch shape (B, 1) and value (B, 1, T);
    ``y`` in that plate and in ``plate("bytes", T, dim=-1)``. Every sequence is a group of its own: its T bytes compete
    for the capacity of the experts, and no other sequence's do. So in the balanced objective the score of a sequence's
    assignment meets that sequence's cost only.

    **Objectives.** Attention behind a block of experts lets a byte's expert change the cost of later bytes.
    :class:`~prob_moe.estimators.TraceBalanced_ELBO` stays unbiased, for the balanced objective.
    :class:`~prob_moe.estimators.TraceRouting_ELBO` takes the cost of each byte for all that its expert changes: here it
    is the *surrogate* of the router objective, and biased; it takes ``check_meeting=False`` to say so.

    **Predictions are causal.** A matching of a sequence lets the expert of a byte depend on later bytes: as a predictor
    it would look ahead. :meth:`predict` and :meth:`generate` therefore let every byte go where its own router says,
    without capacity; what is measured on held-out text is always that. In training the whole sequence is given, and a
    matching of it balances the load; the prediction of a byte can then depend on later ones through the assignment,
    which the served model has no use for.

    With one expert this is the *dense model of equal compute*: every byte passes the same path of the same width.

    :param assignment: the assignment distribution.
    :param num_experts: of a block.
    :param hidden_features: width of an expert, and of a plain feed-forward block.
    :param num_expert_blocks: the first blocks have experts, the others are plain.
    :param num_blocks: attention with a feed-forward block, each.
    :param num_features: d.
    :param num_heads: divides d.
    :param context: the longest sequence.
    :param capacity_factor: capacity of an expert in a sequence, ceil(capacity_factor * T / k).
    :param router_bytes: bytes that a router sees.
    :param router_scale: standard deviation of the router's logits at the start.
    :param baseline: Pyro's ``infer["baseline"]`` options of the assignment sites.
    :raises ValueError: on sizes that do not go together.
    """

    #: sequences and bytes
    max_plate_nesting = 2
    #: elsewhere than in the capacity: in attention
    datapoints_meet = True

    def __init__(
        self,
        assignment: Callable[..., AssignmentDistribution],
        *,
        num_experts: int = 4,
        hidden_features: int = 256,
        num_expert_blocks: int = 1,
        num_blocks: int = 2,
        num_features: int = 64,
        num_heads: int = 4,
        context: int = 128,
        capacity_factor: float = 1.25,
        router_bytes: int = 1,
        router_scale: float = 5.0,
        baseline: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("num_experts", num_experts)
        check_positive_int("hidden_features", hidden_features)
        if not 1 <= num_expert_blocks <= num_blocks:
            raise ValueError(f"num_expert_blocks must be between 1 and {num_blocks}, got {num_expert_blocks!r}")
        if num_features % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide num_features={num_features}")
        self.context = context
        self.bytes = ByteTables(num_features, 4, 1.0)
        self.places = nn.Parameter(0.1 * torch.randn(context, num_features))
        self.attention = nn.ModuleList([CausalAttention(num_features, num_heads) for _ in range(num_blocks)])
        self.feed_forward = nn.ModuleList()
        for block in range(num_blocks):
            if block >= num_expert_blocks:
                self.feed_forward.append(FeedForward(num_features, hidden_features))
                continue
            experts = BatchedExperts(num_experts, num_features, hidden_features, num_features)
            router = ByteTables(num_experts, router_bytes, router_scale)
            site = f"assignment_{block + 1}"
            self.feed_forward.append(ExpertBlock(site, router, experts, assignment, capacity_factor, baseline))
        self.norm = nn.LayerNorm(num_features)
        self.readout = nn.Linear(num_features, NUM_BYTES)

    @property
    def experts_by_layer(self) -> list[int]:
        """Number of experts of every block that has some."""
        return [block.experts.num_experts for block in self.feed_forward if isinstance(block, ExpertBlock)]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        :param x: bytes, long (B, T) with T at most ``context``.
        :param y: the bytes that follow, long (B, T), or None to draw them; then nobody is dropped.
        :returns: y.
        :raises ValueError: if x is empty, too long, or no pair of dimensions, or y has another shape.
        """
        h = self._embedded(x)
        if y is not None and y.shape != x.shape:
            raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
        with pyro.plate("sequences", x.shape[0], dim=-2):
            for attention, feed_forward in zip(self.attention, self.feed_forward):
                h = h + attention(h)
                if isinstance(feed_forward, ExpertBlock):
                    h = h + feed_forward(h, x, everybody=y is None)
                else:
                    h = h + feed_forward(h)
            with pyro.plate("bytes", x.shape[1], dim=-1):
                return pyro.sample("y", dist.Categorical(logits=self.readout(self.norm(h))), obs=y)

    @torch.no_grad()
    def predict(self, x: Tensor, *, sample: bool = False) -> dist.Categorical:
        """
        The law of the next bytes, (B, T), see :meth:`causal_logits`.

        :param sample: draw every byte's expert from its router; else the router's favourite is used.
        """
        return dist.Categorical(logits=self.causal_logits(x, sample=sample)[0])

    @torch.no_grad()
    def causal_logits(self, x: Tensor, *, sample: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Logits of the next bytes, where what is said of a byte depends on nothing that follows it.

        :param x: bytes, long (B, T).
        :param sample: draw every byte's expert from its router; else the router's favourite is used.
        :returns: logits of the next bytes (B, T, 256), and for every block of experts the expert of each byte, (B, T).
        """
        h, assignments = self._embedded(x), []
        for attention, feed_forward in zip(self.attention, self.feed_forward):
            h = h + attention(h)
            if isinstance(feed_forward, ExpertBlock):
                out, z = feed_forward.unlimited(h, x, sample)
                assignments.append(z)
            else:
                out = feed_forward(h)
            h = h + out
        return self.readout(self.norm(h)), tuple(assignments)

    @torch.no_grad()
    def generate(self, prompt: Tensor, length: int, *, temperature: float = 1.0, sample: bool = False) -> Tensor:
        """
        Draw text, byte by byte, by the causal model.

        :param prompt: bytes, long (t,) with t >= 1.
        :param length: bytes to draw.
        :param temperature: divides the logits.
        :param sample: as in :meth:`causal_logits`.
        :returns: prompt and what was drawn, long (t + length,).
        :raises ValueError: on an empty prompt, or a temperature that is not positive.
        """
        if prompt.dim() != 1 or not len(prompt):
            raise ValueError(f"prompt must have shape (t,) with t >= 1, got {tuple(prompt.shape)}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        text = prompt
        for _ in range(length):
            logits, _ = self.causal_logits(text[None, -self.context :], sample=sample)
            text = torch.cat([text, dist.Categorical(logits=logits[0, -1] / temperature).sample((1,))])
        return text

    def _embedded(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or not x.numel() or x.shape[1] > self.context:
            raise ValueError(
                f"x must have shape (sequences, T) with at least one byte and T <= {self.context}, got {tuple(x.shape)}"
            )
        return self.bytes(x) + self.places[: x.shape[1]]
