"""The clauses of the contract of a rule."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prob_moe.distributions.support import expert_counts
from prob_moe.experts import BatchedExperts
from prob_moe.rules import Routing, RoutingRule, SparseRouting, StraightThroughRouting
from prob_moe.testing.clauses.setting import ClauseFailed, ClauseSkipped

_FEATURES = 4


@dataclass(frozen=True)
class RuleSetting:
    """
    What a clause works with, see :func:`~prob_moe.testing.check_rule`.

    :param limited: whether the rule takes a capacity that holds in training and in serving.
    :param wants_identity: whether it is called with the identity of the datapoints.
    """

    make: Callable[..., RoutingRule]
    num_experts: int
    limited: bool
    wants_identity: bool

    def rule(self, **capacity: Any) -> RoutingRule:
        return self.make(**capacity) if self.limited else self.make()

    def logits(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return 2 * torch.randn(*shape, self.columns, dtype=dtype)

    @property
    def columns(self) -> int:
        """Logits of a datapoint."""
        return self.make().num_logits(self.num_experts)

    def experts(self, dtype: torch.dtype = torch.float64, **options: Any) -> BatchedExperts:
        return BatchedExperts(self.num_experts, _FEATURES, 5, _FEATURES, activation=torch.tanh, dtype=dtype, **options)

    def route(self, rule: RoutingRule, logits: Tensor, mask: Tensor | None = None) -> Routing:
        if not self.wants_identity:
            return rule(logits, mask=mask)
        # An identity that goes with the datapoint.
        identity = (1e3 * logits.detach()[..., 0].nan_to_num()).long()
        return rule(logits, mask=mask, identity=identity)


def shapes_and_gradients(setting: RuleSetting) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for batch in ((), (2,)):
            experts = setting.experts(dtype)
            logits = setting.logits(*batch, 7, dtype=dtype).requires_grad_()
            x = torch.randn(*batch, 7, _FEATURES, dtype=dtype)
            routing = setting.route(setting.rule(), logits)
            output = routing.output(experts, x)
            _require(output.shape == (*batch, 7, _FEATURES), f"outputs have shape {tuple(output.shape)}")
            _require(routing.loss.shape == batch, f"the loss has shape {tuple(routing.loss.shape)}, not {batch}")
            _require(output.dtype == routing.loss.dtype == dtype, f"{dtype} is not kept")
            _finite_gradients(output.float().square().sum() + routing.loss.float().sum(), logits, experts)


def few_datapoints(setting: RuleSetting) -> None:
    """None, one, fewer than experts, and padding alone."""
    for n, masked in ((0, False), (1, False), (2, False), (5, True)):
        experts = setting.experts()
        logits, x = setting.logits(n).requires_grad_(), torch.randn(n, _FEATURES, dtype=torch.float64)
        routing = setting.route(setting.rule(), logits, torch.zeros(n, dtype=torch.bool) if masked else None)
        output = routing.output(experts, x)
        _require(output.shape == (n, _FEATURES), f"n={n} gives outputs of shape {tuple(output.shape)}")
        _require(not masked or bool((output == 0).all()), "the output of padding is not 0")
        loss = output.sum() + routing.loss
        _require(bool(loss.isfinite()), f"the loss of n={n} datapoints is not finite")
        _finite_gradients(loss, logits, experts)


def batches_are_their_own(setting: RuleSetting) -> None:
    experts, rule = setting.experts(), setting.rule(capacity=2).eval()
    logits, x = setting.logits(3, 2, 7), torch.randn(3, 2, 7, _FEATURES, dtype=torch.float64)
    together = setting.route(rule, logits)
    outputs = together.output(experts, x)
    for i, j in torch.ones(3, 2).nonzero().tolist():
        alone = setting.route(rule, logits[i, j])
        torch.testing.assert_close(outputs[i, j], alone.output(experts, x[i, j]))
        torch.testing.assert_close(together.loss[i, j], alone.loss)


def padding_takes_no_part(setting: RuleSetting) -> None:
    """
    Padding before, between and behind leaves outputs, losses and gradients as they are, whatever stands in it; a
    capacity factor does not count it.
    """
    mask = torch.tensor([False, True, False, False, True, True, True, True, False, True, True, True, False])
    n = int(mask.sum())
    for residual in (False, True):
        experts = setting.experts(residual=residual)
        logits, x = setting.logits(n), torch.randn(n, _FEATURES, dtype=torch.float64)
        for limit in ({"capacity": 3}, {"capacity_factor": 1.0}):
            rule = setting.rule(**limit).eval()
            output, loss, gradients = _results(setting, rule, experts, logits, x)
            for filling in (torch.nan, torch.inf, -torch.inf):
                padded = [torch.full((len(mask), part.shape[-1]), filling, dtype=torch.float64) for part in (logits, x)]
                for part, present in zip(padded, (logits, x)):
                    part[mask] = present
                padded_output, padded_loss, padded_gradients = _results(
                    setting, rule, experts, padded[0], padded[1], mask
                )
                torch.testing.assert_close(padded_output[mask], output)
                torch.testing.assert_close(padded_loss, loss)
                _require(bool((padded_output[~mask] == 0).all()), "the output of padding is not 0")
                for index, (ours, expected) in enumerate(zip(padded_gradients, gradients)):
                    _require((ours is None) == (expected is None), "padding makes or takes a gradient")
                    if ours is None or expected is None:
                        continue
                    if index < 2:  # of logits and x; then come the experts
                        _require(bool((ours[~mask] == 0).all()), "padding has a gradient")
                        ours = ours[mask]
                    torch.testing.assert_close(ours, expected)


def what_stands_in_padding(setting: RuleSetting) -> None:
    """To the last bit, with the draws of training and several batch elements, one of them all padding."""
    rule, experts = setting.rule(), setting.experts(residual=True)
    mask = torch.tensor([[True, False, True, True, True, False], [True] * 6, [False] * 6])
    logits, x = setting.logits(3, 6), torch.randn(3, 6, _FEATURES, dtype=torch.float64)

    def results(filling: float) -> list[Tensor]:
        torch.manual_seed(2)
        filled_logits, filled_x = (t.masked_fill(~mask.unsqueeze(-1), filling) for t in (logits, x))
        output, loss, gradients = _results(setting, copy.deepcopy(rule), experts, filled_logits, filled_x, mask)
        return [output, loss, *(gradient for gradient in gradients if gradient is not None)]

    expected = results(0.0)
    _require(all(bool(value.isfinite().all()) for value in expected), "not all is finite beside padding")
    for filling in (torch.nan, torch.inf, -torch.inf, 1e300):
        same = all(torch.equal(ours, theirs) for ours, theirs in zip(results(filling), expected, strict=True))
        _require(same, f"{filling} in padding changes something")


def capacity_holds(setting: RuleSetting) -> None:
    if not setting.limited:
        raise ClauseSkipped("it takes no capacity")
    k = setting.num_experts
    for training in (True, False):
        rule = setting.rule(capacity_factor=1.0).train(training)
        crowded = torch.zeros(setting.columns)
        crowded[0] = 2.0
        logits = setting.logits(50, 11) + crowded
        mask = torch.rand(50, 11) < 0.8
        routing = setting.route(rule, logits, mask)
        present = mask.sum(-1)
        capacity = torch.clamp(-(-present // k), min=1)
        sparse = routing.sparse if isinstance(routing, StraightThroughRouting) else routing
        if isinstance(sparse, SparseRouting):
            assignment = sparse.assignment.flatten(-2)
            loads = expert_counts(assignment.clamp(min=0), assignment >= 0, k)
            over = int((loads.amax(-1) > capacity).sum())
            _require(over == 0, f"{over} of 50 batch elements exceed the capacity")
            _require(bool((sparse.assignment.mT[~mask] == -1).all()), "padding is not coded -1")
        # The experts themselves refuse loads above their slots.
        routing.output(setting.experts(), torch.randn(50, 11, _FEATURES, dtype=torch.float64))


def bad_capacities(setting: RuleSetting) -> None:
    if not setting.limited:
        raise ClauseSkipped("it takes no capacity")
    _refused("not both", setting.rule, capacity=2, capacity_factor=1.0)
    for capacity in (0, -1, 2.0, True):
        _refused("capacity must be a positive int", setting.rule, capacity=capacity)
    _refused("capacity_factor must be positive", setting.rule, capacity_factor=0.0)


def seeds(setting: RuleSetting) -> None:
    experts, logits = setting.experts(), setting.logits(40)
    x = torch.randn(40, _FEATURES, dtype=torch.float64)

    def output(rule: RoutingRule, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return setting.route(rule, logits).output(experts, x)

    _require(torch.equal(output(setting.rule(), 1), output(setting.rule(), 1)), "a seed does not fix training")
    rule = setting.rule().eval()
    _require(torch.equal(output(rule, 1), output(rule, 2)), "serving draws something")


def copies_go_on(setting: RuleSetting) -> None:
    """A copy goes on as the original would; what one instance has seen, another does not know."""
    experts, logits = setting.experts(), setting.logits(40)
    x = torch.randn(40, _FEATURES, dtype=torch.float64)

    def output(rule: RoutingRule) -> Tensor:
        torch.manual_seed(3)
        return setting.route(rule, logits).output(experts, x)

    rule, fresh = setting.rule(), output(setting.rule())
    for _ in range(5):
        setting.route(rule, logits + 5 * torch.eye(setting.columns)[0])
    loaded = setting.rule()
    loaded.load_state_dict(rule.state_dict())
    others = [copy.deepcopy(rule), pickle.loads(pickle.dumps(rule)), loaded]
    expected = output(rule)
    for other in others:
        _require(torch.equal(output(other), expected), "a copy gives another output")
        _require(repr(other) == repr(rule), "a copy shows itself otherwise")
    _require(torch.equal(output(setting.rule()), fresh), "a new rule knows what another has seen")


_BAD_ARGUMENTS = (
    (dict(logits=torch.zeros(6, 3, dtype=torch.long)), "int64"),
    (dict(logits=torch.zeros(3)), "logits must have shape (*batch, n, k)"),
    (dict(logits=torch.full((6, 3), torch.nan)), "contain NaN"),
    (dict(logits=torch.full((6, 3), torch.inf)), "contain +inf"),
    (dict(logits=torch.full((6, 3), -torch.inf)), "forbid every expert"),
    (dict(logits=torch.zeros(6, 3), mask=torch.ones(6)), "mask must be a bool tensor"),
    (dict(logits=torch.zeros(6, 3), mask=torch.ones(5, dtype=torch.bool)), "mask of shape (5,)"),
)


def bad_arguments(setting: RuleSetting) -> None:
    for arguments, message in _BAD_ARGUMENTS:
        _refused(message, setting.route, setting.rule(), **arguments)


def objective_is_stated(setting: RuleSetting) -> None:
    _require(bool(getattr(setting.make(), "objective", "")), "it states no objective")


#: by name
RULE_CLAUSES: dict[str, Callable[[RuleSetting], None]] = {
    "shapes, dtypes and gradients": shapes_and_gradients,
    "few datapoints": few_datapoints,
    "leading dimensions are batches of their own": batches_are_their_own,
    "padding takes no part": padding_takes_no_part,
    "what stands in padding changes nothing": what_stands_in_padding,
    "capacity holds": capacity_holds,
    "bad capacities are refused": bad_capacities,
    "a seed fixes training and serving needs none": seeds,
    "copies go on": copies_go_on,
    "bad arguments are refused": bad_arguments,
    "the objective is stated": objective_is_stated,
}


def _require(fulfilled: bool, message: str) -> None:
    if not fulfilled:
        raise ClauseFailed(message)


def _refused(message: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except ValueError as error:
        _require(message in str(error), f"{message!r} is not in the error {str(error)!r}")
    else:
        raise ClauseFailed(f"no ValueError that says {message!r}")


def _finite_gradients(loss: Tensor, logits: Tensor, experts: BatchedExperts) -> None:
    for gradient in torch.autograd.grad(loss, [logits, *experts.parameters()], allow_unused=True):
        _require(gradient is None or bool(gradient.isfinite().all()), "a gradient is not finite")


def _results(
    setting: RuleSetting,
    rule: RoutingRule,
    experts: BatchedExperts,
    logits: Tensor,
    x: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Output, loss, and the gradients of logits, of x and of the experts, None where nothing depends on them."""
    logits, x = logits.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    routing = setting.route(rule, logits, mask)
    output = routing.output(experts, x)
    loss = output.square().sum() + routing.loss.sum()
    gradients = torch.autograd.grad(loss, [logits, x, *experts.parameters()], allow_unused=True)
    return output, routing.loss, list(gradients)
