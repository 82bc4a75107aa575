"""Router and experts as networks, for tables and options that second-order steps on all rows at once do not serve."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prob_moe.distributions import DependentRounding
from prob_moe.experts import BatchedExperts
from prob_moe.sklearn.families import Family


class Networks(nn.Module):
    """
    Router and experts, linear or with one hidden layer of tanh units, in float64.

    A linear expert has dispersions of its own; one with a hidden layer puts them out beside its predictors. Their
    logarithms stay within bounds, softly, so that no row can have an unlimited share in a likelihood.

    :param num_columns: that experts see, p, the first of them ones.
    :param num_router_columns: that the router sees, q, the first of them ones.
    :param hidden_features: of an expert; None for linear ones.
    :param router_features: hidden ones of the router; None for a linear one.
    :param bounds: least and largest logarithms of the dispersions, (2, d).
    """

    bounds: Tensor

    def __init__(
        self,
        family: Family,
        num_experts: int,
        num_columns: int,
        num_router_columns: int,
        hidden_features: int | None,
        router_features: int | None,
        bounds: Tensor,
    ) -> None:
        super().__init__()
        self.family, self.num_experts = family, num_experts
        m, d, double = family.num_predictors, family.num_dispersions, torch.float64
        outputs = m if hidden_features is None else m + d
        self.experts = BatchedExperts(
            num_experts, num_columns, hidden_features, outputs, activation=torch.tanh, dtype=double
        )
        self.router: Callable[..., Tensor]
        if router_features is None:
            self.router = nn.Linear(num_router_columns, num_experts, bias=False, dtype=double)
        else:
            self.router = nn.Sequential(
                nn.Linear(num_router_columns, router_features, dtype=double),
                nn.Tanh(),
                nn.Linear(router_features, num_experts, dtype=double),
            )
        self.dispersion = nn.Parameter(torch.zeros(num_experts, d if hidden_features is None else 0, dtype=double))
        self.register_buffer("bounds", bounds)

    @torch.no_grad()
    def start(self, predictors: list[float], dispersions: list[float]) -> None:
        """Begin near an expert that looks at no columns."""
        m = self.family.num_predictors
        self.experts.output.bias[:, :m] += torch.tensor(predictors, dtype=torch.float64)
        wanted = torch.tensor(dispersions, dtype=torch.float64)
        if self.dispersion.numel():
            self.dispersion.add_(wanted)
        elif len(dispersions):
            self.experts.output.bias[:, m:] += wanted

    def log_router(self, z: Tensor) -> Tensor:
        """:returns: log-probabilities of the experts, (k, n)."""
        return self.router(z).log_softmax(-1).mT

    def dense(self, x: Tensor, offset: Tensor | None = None) -> tuple[Tensor, ...]:
        """:returns: local quantities of every expert for every row: predictors, then dispersions; each (1, k, n)."""
        return self._local(self.experts.dense(x).mT, self.dispersion.mT.unsqueeze(-1), offset)

    def _local(self, out: Tensor, dispersion: Tensor, offset: Tensor | None) -> tuple[Tensor, ...]:
        """
        :param out: what experts put out, (n, outputs, experts) or transposed to (experts, n, outputs).
        :param dispersion: of linear experts, (d, experts, n) up to broadcasting.
        """
        m, d = self.family.num_predictors, self.family.num_dispersions
        out = out.movedim(0, -1)  # (outputs, experts, n)
        if dispersion.numel() or not d:
            out = torch.cat([out, dispersion.expand(d, *out.shape[1:])])
        predictors, raw = out[:m], out[m:]
        if offset is not None:
            predictors = predictors + offset
        lower, upper = self.bounds[0, :, None, None], self.bounds[1, :, None, None]
        return *predictors.unsqueeze(1), *_within(raw, lower, upper).unsqueeze(1)

    def log_marginal(self, x: Tensor, z: Tensor, target: Tensor, offset: Tensor) -> Tensor:
        """:returns: log p(y | x) of every row, nats, (n,)."""
        return (self.log_router(z) + self.family.log_prob(target, self.dense(x, offset))[0]).logsumexp(0)

    def bound(
        self, x: Tensor, z: Tensor, target: Tensor, offset: Tensor, num_selected: int, generator: torch.Generator
    ) -> Tensor:
        """
        A draw of the mixture bound, which no mean of draws exceeds the marginal by: m experts for every row by
        dependent rounding without a capacity, and the gradient of their responsibilities.

        :returns: nats, (n,); its gradient is that of the bound with the choice held fixed.
        """
        logits = self.router(z)
        law = DependentRounding(logits, num_selected=num_selected, capacity=None, validate_args=False)
        chosen = law.draw(generator=generator).value
        log_p = logits.log_softmax(-1).mT.gather(0, chosen)
        log_weights = law.log_weights(chosen).detach()
        out = self.experts(x, chosen, num_selected=num_selected)  # (m, n, outputs)
        local = self._local(out.movedim(1, 0).mT, self.dispersion.mT[:, chosen], offset)
        f = self.family.log_prob(target, local)[0]
        return (log_weights + log_p - log_p.detach() + f).logsumexp(0)

    def penalty(self) -> Tensor:
        """:returns: minus the logarithm of a standard normal density of all weights but biases, up to a constant."""
        weights = [each for name, each in self.named_parameters() if name.endswith("weight")]
        return torch.stack([each.square().sum() for each in weights]).sum() / 2

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Give the experts another order."""
        last: Any = self.router[-1] if isinstance(self.router, nn.Sequential) else self.router
        for parameter in (*self.experts.parameters(), *last.parameters(), self.dispersion):
            parameter.copy_(parameter[order])


def _within(raw: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Softly between bounds, of which either may be infinite."""
    softplus = torch.nn.functional.softplus
    raw = torch.where(lower > -torch.inf, lower + softplus(raw - lower.clamp(min=-1e3)), raw)
    return torch.where(upper < torch.inf, upper - softplus(upper.clamp(max=1e3) - raw), raw)
