"""What every rule owes, whatever it does: the kit's contract; and rules that break it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from prob_moe.experts import BatchedExperts
from prob_moe.rules import (
    SMEAR,
    BASELayer,
    DenseMixer,
    DenseMixture,
    ExpertChoice,
    GatedSets,
    GShard,
    GumbelSoftmax,
    HashRouting,
    LossFreeBias,
    QuantileBalancing,
    RandomRouting,
    RoutingRule,
    SampledGate,
    SigmaMoE,
    SinkhornBASE,
    SoftMoE,
    SparseMixer,
    SparseMixerV2,
    SparseRouting,
    SparsityConstrainedTransport,
    Switch,
    TopGates,
)
from prob_moe.testing import RULE_CLAUSES, ContractError, check_rule

K = 3


@dataclass(frozen=True)
class Case:
    """
    :ivar make: builds the rule for K experts, from ``capacity`` and ``capacity_factor`` where it has them.
    :ivar limited: whether it has them, in training and in serving; None to find out.
    """

    make: Callable[..., RoutingRule]
    limited: bool | None = None


RULES = {
    "switch": Case(Switch),
    "sampled gate": Case(SampledGate),
    "SparseMixer": Case(lambda **capacity: SparseMixer(epsilon=1.0, **capacity)),
    "SparseMixer v2": Case(lambda **capacity: SparseMixerV2(epsilon=1.0, **capacity)),
    "Gumbel-softmax": Case(GumbelSoftmax),
    "loss-free bias": Case(lambda **capacity: LossFreeBias(K, num_selected=2, **capacity)),
    "hash": Case(HashRouting),
    "dense mixture": Case(DenseMixture),
    "DenseMixer": Case(lambda **capacity: DenseMixer(num_selected=2, **capacity)),
    "BASE": Case(BASELayer, limited=False),  # in training only
    "S-BASE": Case(SinkhornBASE),
    "expert choice": Case(ExpertChoice),
    "SMEAR": Case(SMEAR),
    "SMEAR, shared": Case(lambda: SMEAR(shared=True)),
    "σ-MoE": Case(lambda **capacity: SigmaMoE(expert_dropout=0.2, **capacity)),
    "top-2 gates": Case(TopGates),
    "sparse transport": Case(lambda **capacity: SparsityConstrainedTransport(num_selected=K, **capacity)),
    "GShard": Case(GShard),
    "gated sets": Case(GatedSets),
    "quantile balancing": Case(QuantileBalancing, limited=False),  # in training only
    "random": Case(RandomRouting),
    "Soft MoE": Case(lambda: SoftMoE(slots_per_expert=2)),
}


@pytest.mark.parametrize("clause", RULE_CLAUSES)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES.keys())
def test_contract(case: Case, clause: str) -> None:
    check_rule(case.make, clauses=[clause], num_experts=K, limited=case.limited)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_bias_for_each_of_several_models(dtype: torch.dtype) -> None:
    rule, experts = LossFreeBias(K, batch_shape=(4,)), BatchedExperts(K, 2, 5, 2, batch_shape=(4,), dtype=dtype)
    logits, x = torch.randn(2, 4, 7, K, dtype=dtype, requires_grad=True), torch.randn(2, 4, 7, 2, dtype=dtype)
    routing = rule(logits)
    output = routing.output(experts, x)
    assert (output.shape, routing.loss.shape) == ((2, 4, 7, 2), (2, 4))
    (output.float().square().sum() + routing.loss.float().sum()).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


# Rules that break it -------------------------------------------------------------------------------------------------


class NoMask(Switch):
    """Padding takes places."""

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        return super().forward(logits)


class Overfull(Switch):
    """Twice the capacity."""

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        larger = Switch(capacity_factor=None if self.capacity_factor is None else 2 * self.capacity_factor)
        return larger(logits, mask=mask)


class DrawsInServing(SampledGate):
    """Serving depends on the seed."""

    def choose(self, logits: Tensor) -> Tensor:
        return (logits + torch.randn_like(logits)).argmax(-1)


class Remembers(Switch):
    """All objects share what they have seen."""

    seen = [0]  # noqa: RUF012

    def gate(self, logits: Tensor, choices: Tensor) -> Tensor:
        self.seen[0] += 1
        return super().gate(logits, choices) * self.seen[0]


class AcrossBatches(Switch):
    """A batch element's gates depend on its companions."""

    def gate(self, logits: Tensor, choices: Tensor) -> Tensor:
        return super().gate(logits, choices) * logits.detach().mean()


class Nameless(Switch):
    objective = ""


BROKEN = {
    NoMask: "padding takes no part",
    Overfull: "capacity holds",
    DrawsInServing: "a seed fixes training and serving needs none",
    Remembers: "copies go on",
    AcrossBatches: "leading dimensions are batches of their own",
    Nameless: "the objective is stated",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_what_breaks_a_clause_is_found(broken: type[RoutingRule]) -> None:
    with pytest.raises(ContractError, match=f"{broken.__name__} breaks 1 of 1 clauses"):
        check_rule(broken, clauses=[BROKEN[broken]])


def test_a_clause_that_does_not_apply_is_skipped() -> None:
    report = check_rule(DenseMixture, clauses=["capacity holds", "the objective is stated"])
    assert report.skipped == {"capacity holds": "it takes no capacity"}
    assert report.passed == ["the objective is stated"]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"unknown clauses \['politeness'\]; known are"):
        check_rule(Switch, clauses=["politeness"])
    with pytest.raises(ValueError, match="num_experts must be at least 3, got 2"):
        check_rule(Switch, num_experts=2)
    with pytest.raises(ValueError, match="make must return a RoutingRule, got Linear"):
        check_rule(lambda: torch.nn.Linear(2, 2))  # type: ignore[return-value]
