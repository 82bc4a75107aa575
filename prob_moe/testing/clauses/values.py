"""Clauses on the values: shapes, support, capacity, enumeration, mode, forbidden experts, padding."""

from contextlib import suppress

import pyro
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.support import router_choices
from prob_moe.testing.clauses.setting import (
    ClauseSkipped,
    Setting,
    expect,
    expect_shape,
)
from prob_moe.testing.clauses.weights import expect_unbiased
from prob_moe.testing.statistics import deviation


def shapes(setting: Setting) -> str:
    """Everything is sample_shape + batch_shape + event_shape, also with dimensions of size 1, alone or in a plate."""
    for size in setting.sizes:
        n, k, _ = size
        for batch, sample in (((), ()), ((), (1,)), ((1,), (2,)), ((2, 3), (2, 1)), ((2, 1), (1,))):
            routing = setting.routing(size, *batch)
            lead = (*sample, *batch)
            event = setting.event(size)
            expect(
                routing.batch_shape == batch and routing.event_shape == event,
                f"at {size}, logits {(*batch, n, k)} give batch_shape {tuple(routing.batch_shape)} and event_shape "
                f"{tuple(routing.event_shape)}",
            )
            several = {} if routing.num_selected is None else {"num_selected": routing.num_selected}
            inferred = routing.infer_shapes(routing.logits.shape, **several)
            expect(
                inferred == (routing.batch_shape, routing.event_shape),
                f"at {size}, infer_shapes says {inferred} for batch_shape {tuple(batch)} and event_shape {event}",
            )
            value = routing.sample(torch.Size(sample))
            where = f"with sample_shape {sample} and batch_shape {batch}"
            expect_shape(f"sample {where}", size, value, (*lead, *event))
            expect_shape(f"importance_weights {where}", size, routing.importance_weights(value), (*lead, *event))
            expect_shape(f"router_log_prob {where}", size, routing.router_log_prob(value), (*lead, *event))
            expect_shape(f"loads {where}", size, routing.loads(value), (*lead, k))
            expect_shape(f"mode {where}", size, routing.mode, (*batch, *event))
            with suppress(NotImplementedError):
                expect_shape(f"log_prob {where}", size, routing.log_prob(value), lead)
            with suppress(NotImplementedError):
                expect_shape(f"keep_probability {where}", size, routing.keep_probability(value), (*lead, n))
            with suppress(NotImplementedError):
                expect_shape(f"pair_weights {where}", size, routing.pair_weights(value), (*lead, event[0], *event))
        with pyro.poutine.block(), pyro.plate("replicas", 1, dim=-2):
            value = pyro.sample("z", setting.routing(size, 1, 1))
        expect_shape("a site in a plate of size 1", size, value, (1, 1, *setting.event(size)))
    return f"{len(setting.sizes)} sizes"


def long_values(setting: Setting) -> str:
    """Draws and mode are long tensors."""
    routing = setting.routing(setting.sizes[0])
    for what, value in (("sample", routing.sample()), ("mode", routing.mode)):
        expect(value.dtype == torch.long, f"{what} has dtype {value.dtype} instead of torch.int64")
    return ""


def support(setting: Setting) -> str:
    """Every draw passes ``support.check``, and is coded with the experts there are."""
    for size in setting.sizes:
        routing = setting.routing(size)
        value = routing.sample(torch.Size((1000,)))
        outside = ~routing.support.check(value)
        expect(
            not outside.any(),
            f"at {size}, {int(outside.sum())} of 1000 draws are outside the support {routing.support}"
            + (f", the first is {value[outside][0].tolist()}" if outside.any() else ""),
        )
        dropped = int((value < 0).sum())
        expect(
            routing.drops or not dropped,
            f"at {size}, {dropped} of {value.numel()} datapoints are dropped, but drops is False",
        )
        largest = int(router_choices(value).max())
        expect(largest < size.num_experts, f"at {size}, a draw names expert {largest}")
    return "1000 draws a size"


def capacity(setting: Setting) -> str:
    """No expert processes more than its capacity, and ``loads`` counts right."""
    if not setting.routing(setting.sizes[0]).limited:
        raise ClauseSkipped("limited is False")
    for size in setting.sizes:
        routing = setting.routing(size)
        value = routing.sample(torch.Size((1000,)))
        for what, assignment in (("draw", value), ("mode", routing.mode)):
            processed = one_hot(assignment.clamp(min=0), size.num_experts) * (assignment >= 0).unsqueeze(-1)
            loads = processed.sum(tuple(range(-1 - len(routing.event_shape), -1)))
            largest = int(loads.max())
            expect(largest <= size.capacity, f"at {size}, a {what} gives {largest} datapoints to one expert")
            expect(torch.equal(routing.loads(assignment), loads), f"at {size}, loads miscounts a {what}")
    return "1000 draws a size"


def enumeration(setting: Setting) -> str:
    """Values are unique, in the support, complete, and follow ``expand``."""
    counts = []
    for size in setting.enumerable_sizes:
        routing = setting.routing(size, 2)
        values = enumerated(routing)
        event, count = setting.event(size), len(values)
        expect_shape("enumerate_support()", size, values, (count, 2, *event))
        expect_shape("enumerate_support(False)", size, routing.enumerate_support(expand=False), (count, 1, *event))
        grown = routing.expand(torch.Size((3, 2))).enumerate_support()
        expect_shape("enumerate_support() after expand([3, 2])", size, grown, (count, 3, 2, *event))
        unique = len(values[:, 0].unique(dim=0))
        expect(unique == count, f"at {size}, only {unique} of the {count} values enumerated are unique")
        outside = int((~routing.support.check(values)).sum())
        expect(not outside, f"at {size}, {outside} of the {2 * count} values are outside the support")
        drawn = setting.routing(size).sample(torch.Size((1000,)))
        seen = len(torch.cat([values[:, 0], drawn]).unique(dim=0))
        expect(seen == count, f"at {size}, 1000 draws show {seen - count} values that the {count} enumerated lack")
        counts.append(str(count))
    return f"{', '.join(counts)} values"


def enumerated(routing: AssignmentDistribution) -> Tensor:
    """``enumerate_support``; the clause is skipped where there is none."""
    try:
        return routing.enumerate_support()
    except NotImplementedError as error:
        expect(not routing.has_enumerate_support, f"has_enumerate_support is True, yet: {error}")
        raise ClauseSkipped("no enumerate_support") from None


def mode(setting: Setting) -> str:
    """The mode is in the support, and the same whenever it is asked for."""
    for size in setting.sizes:
        routing = setting.routing(size, 2)
        first = routing.mode
        expect(
            routing.support.check(first).all(),
            f"at {size}, the mode {first.tolist()} is outside the support {routing.support}",
        )
        for _ in range(5):
            again = routing.mode
            expect(torch.equal(first, again), f"at {size}, the mode is {first.tolist()}, then {again.tolist()}")
    return ""


def forbidden(setting: Setting) -> str:
    """A logit of minus infinity keeps an expert from being chosen."""
    for size in setting.sizes:
        logits, k = setting.constrained_logits(size), size.num_experts
        routing = setting.make(logits, capacity=size.capacity)
        value = routing.sample(torch.Size((1000,)))
        for what, assignment in (("draws", value), ("mode", routing.mode.unsqueeze(0))):
            choices = one_hot(router_choices(assignment), k).bool()
            wrong = int((choices & (logits == -torch.inf)).any(-1).sum())
            expect(not wrong, f"at {size}, {wrong} datapoints of the {what} choose an expert whose logit is -inf")
        weights = routing.importance_weights(value)
        broken = int((~torch.isfinite(weights)).sum())
        expect(not broken, f"at {size} with logits of -inf, {broken} of {weights.numel()} weights are not finite")
    return "1000 draws a size"


def padding(setting: Setting) -> str:
    """Masked datapoints are coded -1, weigh nothing, take no capacity, and leave the law of the others alone."""
    if not setting.takes("mask"):
        raise ClauseSkipped("make takes no mask")
    size = setting.padded_size
    mask = torch.tensor([True, True, False, True, False, True], device=setting.device)
    logits = setting.logits(size)
    present = logits[mask]
    logits[~mask] = torch.nan  # whatever stands in padding
    routing = setting.make(logits, capacity=size.capacity, mask=mask)
    value = routing.sample(torch.Size((setting.num_samples,)))
    for what, assignment in (("draws", value), ("mode", routing.mode.unsqueeze(0))):
        wrong = int((assignment[..., ~mask] != -1).sum())
        expect(not wrong, f"{wrong} padding entries of the {what} are not coded -1")
        expect(routing.support.check(assignment).all(), f"the {what} with padding leave the support")
    weights = routing.importance_weights(value)
    heaviest = float(weights[..., ~mask].abs().max())
    expect(heaviest == 0, f"padding has a weight of {heaviest:.4g}")
    largest = float(routing.router_log_prob(value)[..., ~mask].abs().max())
    expect(largest == 0, f"router_log_prob of padding is {largest:.4g} instead of 0")
    off = expect_unbiased(setting, f"{size} with 2 of 6 masked", value[..., mask], weights[..., mask], present)
    alone = setting.make(present, capacity=size.capacity)
    law = _expect_same_law(setting, value[..., mask], alone.sample(torch.Size((setting.num_samples,))))
    with suppress(NotImplementedError):
        ours, theirs = routing.log_prob(value[:100]), alone.log_prob(value[:100][..., mask])
        difference = float((ours - theirs).masked_fill(ours == theirs, 0.0).abs().max())
        expect(
            difference <= max(1e-9, 2 * setting.log_prob_tolerance),
            f"log_prob with padding differs by {difference:.4g} nats from that of the others alone",
        )
    return f"largest deviation {max(off, law):.1f} standard errors"


def junk(setting: Setting) -> str:
    """No value, weight, probability or gradient depends on what stands in padded rows, NaN for one."""
    if not setting.takes("mask"):
        raise ClauseSkipped("make takes no mask")
    size = setting.padded_size
    mask = torch.tensor([True, True, False, True, False, True], device=setting.device)
    state = torch.random.get_rng_state()
    reference: dict[str, Tensor] = {}
    for filler in (0.0, 1e3, -torch.inf, torch.inf, torch.nan):
        logits = setting.logits(size).masked_fill(~mask.unsqueeze(-1), filler).requires_grad_()
        torch.random.set_rng_state(state)
        routing = setting.make(logits, capacity=size.capacity, mask=mask)
        found = {"sample": routing.sample(torch.Size((50,))), "mode": routing.mode}
        value = found["sample"]
        found["importance_weights"] = routing.importance_weights(value)
        for what in ("router_log_prob", "log_prob"):
            with suppress(NotImplementedError):
                result = getattr(routing, what)(value)
                found[what] = result.detach()
                found[f"the gradient of {what}"] = torch.autograd.grad(result.sum(), logits, retain_graph=True)[0]
        for what, result in found.items():
            same = torch.equal(result, reference.setdefault(what, result))
            expect(same, f"{what} changes with {filler:g} in place of 0 in padded rows")
        for what in ("router_log_prob", "log_prob"):
            inside = found.get(f"the gradient of {what}", torch.zeros_like(logits))[~mask]
            expect(not inside.any(), f"the gradient of {what} in padded rows is {float(inside.abs().max()):.4g}")
    return ", ".join(reference)


def _expect_same_law(setting: Setting, padded: Tensor, alone: Tensor) -> float:
    """:returns: the largest difference in how often a datapoint is processed by an expert, in standard errors."""
    k = int(router_choices(torch.cat([padded, alone])).max()) + 1
    processed = [one_hot(v.clamp(min=0), k).double() * (v >= 0).unsqueeze(-1) for v in (padded, alone)]
    if padded.dim() == 3:
        processed = [entries.sum(-3) for entries in processed]
    difference = processed[0] - processed[1]
    # Counts of rare events are not normal: none is judged as if fewer than 25 were expected.
    off = deviation(difference, torch.zeros_like(difference[0]), least_error=5 / len(alone))
    distance, (i, j) = off.worst()
    frequencies = [float(p[:, i, j].mean()) for p in processed]
    expect(
        distance < setting.max_standard_errors,
        f"datapoint {i} goes to expert {j} with frequency {frequencies[0]:.4f}, without padding with "
        f"{frequencies[1]:.4f}: {distance:.1f} standard errors off",
    )
    return distance
