"""A tiny language model, its text, and its logits by a loop over bytes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.language import LanguageModel
from models.language_blocks import ExpertBlock, FeedForward, RuleBlock
from prob_moe.distributions import GumbelMatching


def small(assignment: Callable | None = GumbelMatching, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"num_experts": 3, "hidden_features": 5, "num_features": 6, "num_heads": 2, "context": 12}
    return LanguageModel(assignment, **{**sizes, "num_expert_blocks": 2, **options}).double()


def text(num_sequences: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(97, 105, (num_sequences, length), generator=generator)


def hidden(model: LanguageModel, x: Tensor, assignments: list[Tensor], *, blocks: int) -> list[Tensor]:
    """
    What the blocks make of one sequence, byte by byte, without the feed-forward part of the last of them.

    :param assignments: of the blocks with experts, long (T,); an expert works on one byte at a time, and not on a
        dropped one.
    """
    h = []
    for t in range(len(x)):
        recent = [x[t - lag] if t >= lag else torch.tensor(0) for lag in range(len(model.bytes.tables))]
        h.append(model.places[t] + sum(table(byte) for table, byte in zip(model.bytes.tables, recent)))
    experts = iter(assignments)
    for block in range(blocks):
        attention, feed_forward = model.attention[block], model.feed_forward[block]
        heads = [attention.inputs(attention.norm(v)).view(3, attention.num_heads, -1) for v in h]
        new = []
        for t in range(len(x)):
            mixed = []
            for head in range(attention.num_heads):
                scores = [heads[t][0, head] @ heads[s][1, head] / len(heads[t][0, head]) ** 0.5 for s in range(t + 1)]
                shares = torch.stack(scores).softmax(0)
                mixed.append(sum(shares[s] * heads[s][2, head] for s in range(t + 1)))
            new.append(h[t] + attention.output(torch.cat(mixed)))
        if block < blocks - 1:
            if isinstance(feed_forward, FeedForward):
                new = [v + feed_forward.output(feed_forward.hidden(feed_forward.norm(v)).relu()) for v in new]
            else:
                z = next(experts).tolist()
                new = [v if e < 0 else v + by_expert(feed_forward, v, e) for v, e in zip(new, z)]
        h = new
    return h


def by_expert(block: ExpertBlock | RuleBlock, v: Tensor, expert: int) -> Tensor:
    """What an expert puts out for one byte."""
    layers = block.experts
    inner = block.norm(v) @ layers.hidden.weight[expert] + layers.hidden.bias[expert]
    return inner.relu() @ layers.output.weight[expert] + layers.output.bias[expert]
