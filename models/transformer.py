"""A transformer block whose feed-forward part is a layer of experts."""

from torch import Tensor, nn

from models.language_blocks import CausalAttention
from prob_moe.layer import ExpertLayer


class ExpertTransformerBlock(nn.Module):
    """
    Attention, then experts, each with a residual connection: (*, T, d) -> (*, T, d). Behind attention a token's expert
    changes what other tokens cost: train it by the balanced objective, in plain torch by
    ``routed.surrogate(loss, objective="balanced")``, in Pyro by :class:`~prob_moe.estimators.TraceBalanced_ELBO`.

    :param num_features: d.
    :param num_heads: of the attention, divides d.
    :param experts: from d to d features; with ``num_selected`` it combines them by gates.
    """

    def __init__(self, num_features: int, num_heads: int, experts: ExpertLayer) -> None:
        super().__init__()
        self.attention = CausalAttention(num_features, num_heads)
        self.norm = nn.LayerNorm(num_features)
        self.experts = experts

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(h)
        out: Tensor = h + self.experts(self.norm(h))
        return out
