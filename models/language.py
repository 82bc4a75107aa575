"""A small language model on bytes, whose feed-forward blocks are mixtures of experts."""

from collections.abc import Callable
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.language_blocks import ByteTables, CausalAttention, ExpertBlock, FeedForward, RuleBlock, Sees
from models.text import NUM_BYTES
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.prediction import mix
from prob_moe.rules import RoutingRule


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

    **Objectives.** Attention behind a block of experts lets a byte's expert change the cost of later bytes
    (:attr:`datapoints_meet`). :class:`~prob_moe.estimators.TraceBalanced_ELBO` stays unbiased, for the balanced
    objective. :class:`~prob_moe.estimators.TraceRouting_ELBO` takes the cost of each byte for all that its expert
    changes: here it is the *surrogate* of the router objective, and biased; it takes ``check_meeting=False`` to say so.
    Where the last block alone has experts, bytes meet in the capacity only, and it is unbiased.

    **Several experts per byte.** With ``num_selected`` = m the last block selects m experts for every byte, with values
    (B, 1, m, T), and ``y`` has the :class:`~prob_moe.distributions.SelectedMixture` of what they say, each with a
    read-out of its own: all below the last block is computed once, experts and read-out m times. Blocks of experts
    before it have one expert per byte. :class:`~prob_moe.estimators.TraceMixture_ELBO` trains it.

    **Predictions are causal.** A matching of a sequence lets the expert of a byte depend on later bytes: as a predictor
    it would look ahead. :meth:`predict` and :meth:`generate` therefore let every byte go where its own router says,
    without capacity; what is measured on held-out text is always that. In training the whole sequence is given, and a
    matching of it balances the load; the prediction of a byte can then depend on later ones through the assignment,
    which the served model has no use for.

    With one expert this is the *dense model of equal compute*: every byte passes the same path of the same width.

    :param assignment: the assignment distribution; or None, with
    :param rule: that makes a rule for every block of experts, which then draws nothing. Its loss is the site
        ``assignment_1_loss``, ... Rules that look at the whole sequence when they serve are not causal.
    :param num_experts: of a block.
    :param hidden_features: width of an expert, and of a plain feed-forward block.
    :param num_expert_blocks: as many blocks have experts, the others are plain; these are
    :param experts_in: the first ones, or the last ones.
    :param num_blocks: attention with a feed-forward block, each.
    :param num_features: d.
    :param num_heads: divides d.
    :param context: the longest sequence.
    :param capacity_factor: capacity of an expert in a sequence, ceil(capacity_factor * T m / k); of the distribution.
    :param num_selected: m, the experts of every byte in the last block; None for one.
    :param router: what routers see: ``"bytes"``, or the ``"hidden"`` features that the experts see.
    :param router_bytes: bytes that a router of bytes sees.
    :param router_scale: standard deviation of a router's logits at the start; None for 5 with bytes, and with hidden
        features for the start of torch's linear maps, 0.6.
    :param baseline: Pyro's ``infer["baseline"]`` options of the assignment sites with one expert.
    :raises ValueError: on sizes or options that do not go together.
    """

    #: sequences and bytes
    max_plate_nesting = 2

    def __init__(
        self,
        assignment: Callable[..., AssignmentDistribution] | None = None,
        *,
        rule: Callable[[], RoutingRule] | None = None,
        num_experts: int = 4,
        hidden_features: int = 256,
        num_expert_blocks: int = 1,
        experts_in: Literal["first", "last"] = "first",
        num_blocks: int = 2,
        num_features: int = 64,
        num_heads: int = 4,
        context: int = 128,
        capacity_factor: float = 1.25,
        num_selected: int | None = None,
        router: Sees = "bytes",
        router_bytes: int = 1,
        router_scale: float | None = None,
        baseline: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("num_experts", num_experts)
        check_positive_int("hidden_features", hidden_features)
        if (assignment is None) == (rule is None):
            raise ValueError(f"give one of assignment and rule, got {assignment!r} and {rule!r}")
        if not 1 <= num_expert_blocks <= num_blocks:
            raise ValueError(f"num_expert_blocks must be between 1 and {num_blocks}, got {num_expert_blocks!r}")
        if num_features % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide num_features={num_features}")
        if router_scale is not None and not 0 <= router_scale < float("inf"):
            raise ValueError(f"router_scale must be finite and at least 0, got {router_scale!r}")
        for name, value, known in (
            ("experts_in", experts_in, ("first", "last")),
            ("router", router, ("bytes", "hidden")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
        with_experts = (
            range(num_blocks)[:num_expert_blocks] if experts_in == "first" else range(num_blocks)[-num_expert_blocks:]
        )
        last = num_blocks - 1
        if num_selected is not None:
            _check_several(num_selected, num_experts, rule, last in with_experts)
        self.context = context
        self.num_selected = num_selected
        self.bytes = ByteTables(num_features, 4, 1.0)
        self.places = nn.Parameter(0.1 * torch.randn(context, num_features))
        self.attention = nn.ModuleList([CausalAttention(num_features, num_heads) for _ in range(num_blocks)])
        self.feed_forward = nn.ModuleList()
        for block in range(num_blocks):
            if block not in with_experts:
                self.feed_forward.append(FeedForward(num_features, hidden_features))
                continue
            experts = BatchedExperts(num_experts, num_features, hidden_features, num_features)
            network: nn.Module
            if router == "bytes":
                network = ByteTables(num_experts, router_bytes, 5.0 if router_scale is None else router_scale)
            else:
                network = nn.Linear(num_features, num_experts)
                if router_scale is not None:
                    # What it sees is normalised.
                    nn.init.normal_(network.weight, std=router_scale / num_features**0.5)
                    nn.init.zeros_(network.bias)
            parts = f"assignment_{block + 1}", network, router, experts
            if rule is not None:
                self.feed_forward.append(RuleBlock(*parts, rule()))
                continue
            assert assignment is not None
            several = num_selected if block == last else None
            of_one = baseline if several is None else None
            self.feed_forward.append(ExpertBlock(*parts, assignment, capacity_factor, several, of_one))
        self.norm = nn.LayerNorm(num_features)
        self.readout = nn.Linear(num_features, NUM_BYTES)

    @property
    def datapoints_meet(self) -> bool:
        """Whether bytes meet elsewhere than in the capacity: in attention behind a block that draws its experts."""
        return any(isinstance(block, ExpertBlock) for block in self.feed_forward[:-1])

    @property
    def experts_by_layer(self) -> list[int]:
        """Number of experts of every block that has some."""
        return [block.experts.num_experts for block in self.feed_forward if isinstance(block, ExpertBlock | RuleBlock)]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        :param x: bytes, long (B, T) with T at most ``context``.
        :param y: the bytes that follow, long (B, T), or None to draw them; then nobody is dropped, and of several
            experts one is drawn from the router.
        :returns: y.
        :raises ValueError: if x is empty, too long, or no pair of dimensions, or y has another shape.
        """
        h = self._embedded(x)
        if y is not None and y.shape != x.shape:
            raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
        with pyro.plate("sequences", x.shape[0], dim=-2):
            likelihood = None
            for attention, block in zip(self.attention, self.feed_forward):
                h = h + attention(h)
                if isinstance(block, RuleBlock):
                    h = h + block(h, x, everybody=y is None)
                elif not isinstance(block, ExpertBlock):
                    h = h + block(h)
                else:
                    out, site = block(h, x, everybody=y is None)
                    if block.num_selected is None:
                        h = h + out
                    elif y is None:
                        h = h + block.alone(h, x, sample=True)[0]
                    else:
                        likelihood = block.selected_mixture(site, h.unsqueeze(-3) + out, self._next_byte)
            with pyro.plate("bytes", x.shape[1], dim=-1):
                return pyro.sample("y", self._next_byte(h) if likelihood is None else likelihood, obs=y)

    @torch.no_grad()
    def predict(self, x: Tensor, *, num_selected: int | None = None, sample: bool = False) -> dist.Categorical:
        """
        The law of the next bytes, (B, T), see :meth:`causal_logits`.

        :param num_selected: as in :meth:`causal_logits`.
        :param sample: likewise.
        """
        return dist.Categorical(logits=self.causal_logits(x, num_selected=num_selected, sample=sample)[0])

    @torch.no_grad()
    def causal_logits(
        self, x: Tensor, *, num_selected: int | None = None, sample: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Logits of the next bytes, where what is said of a byte depends on nothing that follows it.

        :param x: bytes, long (B, T).
        :param num_selected: m, mix what each byte's m favourites in the last block say, with renormalised
            probabilities; None for as many as were trained.
        :param sample: draw every byte's expert from its router; else the router's favourite is used. Of several, one
            is drawn in the last block, too: a byte drawn after it is one of the mixture of all experts.
        :returns: logits of the next bytes (B, T, 256), and for every block of experts the expert of each byte, (B, T);
            with several (B, m, T).
        :raises ValueError: if m is no int from 1 to k, or the last block draws no experts.
        """
        h = self._embedded(x)
        assignments: list[Tensor] = []
        several = self.num_selected if num_selected is None else num_selected
        last = self.feed_forward[-1]
        if num_selected is not None:
            rule = last if isinstance(last, RuleBlock) else None
            _check_several(num_selected, self.experts_by_layer[-1], rule, isinstance(last, ExpertBlock))
        for attention, block in zip(self.attention, self.feed_forward):
            h = h + attention(h)
            if not isinstance(block, ExpertBlock | RuleBlock):
                h = h + block(h)
            elif several is not None and not sample and block is last and isinstance(block, ExpertBlock):
                out, log_p, z = block.favourites(h, x, several)
                law = mix(log_p.mT, self._next_byte(h.unsqueeze(-2) + out.movedim(-3, -2)))
                return law.logits, (*assignments, z)
            else:
                out, z = block.alone(h, x, sample=sample)
                h = h + out
                assignments.append(z)
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

    def _next_byte(self, h: Tensor) -> TorchDistribution:
        return dist.Categorical(logits=self.readout(self.norm(h)))


def _check_several(num_selected: int, num_experts: int, rule: object, drawn_in_last: bool) -> None:
    """
    :raises ValueError: if several experts per byte cannot be had.
    """
    check_positive_int("num_selected", num_selected)
    if num_selected > num_experts:
        raise ValueError(f"num_selected={num_selected} exceeds the number of experts, {num_experts}")
    if rule is not None:
        raise ValueError(f"num_selected={num_selected} is for assignment distributions: give a rule its own option")
    if not drawn_in_last:
        raise ValueError(
            f"num_selected={num_selected} wants experts in the last block, where only they and the read-out are "
            "computed several times: use experts_in='last'"
        )
