"""What a language model on bytes is stacked from: attention, a plain block, and blocks of experts."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from models.text import NUM_BYTES
from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.sets import entries_of, most_wanted
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.layer.base import RoutedExperts, Site
from prob_moe.rules import RoutingRule


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


#: what the router of a block sees
Sees = Literal["bytes", "hidden"]


class ExpertBlock(RoutedExperts, PyroModule):
    """
    A feed-forward block of experts that an assignment distribution routes.

    A router of bytes sees them through tables of its own. At the start its logits have a standard deviation well above
    1: routing begins as a nearly fixed function of the bytes, as in hash routing (Roller et al. 2021), on which experts
    can specialise, and is trained from there. Own tables keep the noise of a score function out of attention, experts
    and embeddings, where it would drown everything else; the mixture bound has no score function, and its router may
    see what the experts see.

    :param name: of the assignment site.
    :param router: to logits (*, T, k): of bytes, long (*, T), each from its byte and those before; or of the
        normalised hidden features (*, T, d).
    :param sees: which of both.
    :param experts: from d to d features.
    :param assignment: the assignment distribution.
    :param capacity_factor: capacity = ceil(capacity_factor * T m / k), in every sequence.
    :param num_selected: m, the experts of every byte, for the mixture bound; None for one.
    :param baseline: Pyro's ``infer["baseline"]`` options.
    """

    def __init__(
        self,
        name: str,
        router: nn.Module,
        sees: Sees,
        experts: BatchedExperts,
        assignment: Callable[..., AssignmentDistribution],
        capacity_factor: float,
        num_selected: int | None = None,
        baseline: dict[str, Any] | None = None,
    ) -> None:
        options: dict[str, Any] = {"num_selected": num_selected, "baseline": baseline}
        super().__init__(router, experts, assignment, capacity_factor=capacity_factor, **options)
        self.name, self.sees = name, sees
        self.norm = nn.LayerNorm(experts.in_features)

    def forward(self, h: Tensor, x: Tensor, *, everybody: bool = False) -> tuple[Tensor, Site]:
        """
        Draw the assignment of every sequence, and let the experts work; a dropped byte's output is 0.

        :param h: (*, B, T, d).
        :param x: bytes, long (B, T).
        :param everybody: whether a dropped byte is processed too, by the expert that its router chose.
        :returns: outputs (*, B, T, d), or (*, B, m, T, d) with ``num_selected``; and the site.
        """
        normed = self.norm(h)
        site = self.site(self.name, h, self._logits(normed, x))
        return self.process(normed, site.assignment, site.law, everybody=everybody), site

    def alone(self, h: Tensor, x: Tensor, *, sample: bool) -> tuple[Tensor, Tensor]:
        """
        Every byte by itself, without capacity.

        :param sample: draw its expert from its router; else its favourite is used.
        :returns: outputs (B, T, d), and every byte's expert, long (B, T).
        """
        normed = self.norm(h)
        logits = self._logits(normed, x)
        z = torch.distributions.Categorical(logits=logits).sample() if sample else logits.argmax(-1)
        return self.experts(normed, z), z

    def favourites(self, h: Tensor, x: Tensor, num_selected: int) -> tuple[Tensor, Tensor, Tensor]:
        """
        Every byte's m most probable experts, without capacity.

        :returns: outputs (B, m, T, d); renormalised log-probabilities, nats (B, m, T); and the experts, long (B, m, T).
        """
        normed = self.norm(h)
        logits = self._logits(normed, x)
        z = most_wanted(logits, num_selected)
        log_p = entries_of(logits, z, num_selected).log_softmax(-2)
        return self.experts(normed, z, num_selected=num_selected), log_p, z

    def _logits(self, normed: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.router(x if self.sees == "bytes" else normed)
        return logits


class RuleBlock(nn.Module):
    """
    The same block with a rule in the place of the distribution: an :class:`~prob_moe.layer.ExpertLayer`.

    :param name: of the site of its auxiliary loss, with ``_loss`` behind it.
    :param router: as of :class:`ExpertBlock`.
    :param sees: likewise.
    :param experts: likewise.
    :param rule: with the capacity that it keeps to in training.
    """

    def __init__(self, name: str, router: nn.Module, sees: Sees, experts: BatchedExperts, rule: RoutingRule) -> None:
        super().__init__()
        self.sees = sees
        self.norm = nn.LayerNorm(experts.in_features)
        self.layer = ExpertLayer(router, experts, rule, name=name)

    @property
    def experts(self) -> BatchedExperts:
        experts: BatchedExperts = self.layer.experts
        return experts

    def forward(self, h: Tensor, x: Tensor, *, everybody: bool = False) -> Tensor:
        """
        :param h: (*, B, T, d).
        :param x: bytes, long (B, T).
        :param everybody: whether the rule serves: nobody is dropped.
        :returns: outputs (*, B, T, d).
        """
        training = self.layer.training
        self.layer.train(training and not everybody)
        try:
            out: Tensor = self.layer(self.norm(h), router_input=x if self.sees == "bytes" else None)
        finally:
            self.layer.train(training)
        return out

    def alone(self, h: Tensor, x: Tensor, *, sample: bool) -> tuple[Tensor, Tensor]:
        """
        Every byte by itself, as the rule serves.

        :param sample: nothing is drawn, whatever is asked for.
        :returns: outputs (B, T, d), and every byte's experts, long (B, m, T).
        :raises ValueError: if the rule gives bytes no experts of their own.
        """
        with record_routing() as routed:
            out = self(h, x, everybody=True)
        z = routed.visits[0].recorded.value
        if z is None:
            rule = type(self.layer.rule).__name__
            raise ValueError(f"rule must give every byte experts of its own, got {rule}, under which all share them")
        return out, z
