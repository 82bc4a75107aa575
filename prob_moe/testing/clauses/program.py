"""Clauses on the life in a program: expansion, dtype and device, provenance, copies, seeds, errors."""

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance

from prob_moe.testing.clauses.setting import ClauseFailed, ClauseSkipped, Setting, expect, expect_shape
from prob_moe.testing.clauses.weights import expect_unbiased

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def expansion(setting: Setting) -> str:
    """An expanded distribution draws independently, keeps its law, and weighs its draws."""
    size = setting.sizes[0]
    grown = setting.routing(size, 2, 1).expand(torch.Size((2, 3)))
    expect(grown.batch_shape == (2, 3), f"expand([2, 3]) has batch_shape {tuple(grown.batch_shape)}")
    expect_shape("sample after expand([2, 3])", size, grown.sample(), (2, 3, *setting.event(size)))
    routing = setting.routing(size)
    count = setting.num_samples
    many = routing.expand(torch.Size((count,)))
    value = many.sample()
    if setting.choices(size) > 1:
        distinct = len(value.unique(dim=0))
        expect(distinct > 1, f"at {size}, the {count} draws of an expanded distribution are all the same")
    weights = many.importance_weights(value)
    expect_shape(f"importance_weights after expand([{count}])", size, weights, (count, *setting.event(size)))
    off = expect_unbiased(setting, f"{size}, expanded to {count}", value, weights, routing.logits)
    try:
        few = routing.expand(torch.Size((50,)))
        difference = float((few.log_prob(value[:50]) - routing.log_prob(value[:50])).abs().max())
    except NotImplementedError:
        return f"largest deviation {off:.1f} standard errors"
    expect(
        difference <= max(1e-9, 2 * setting.log_prob_tolerance),
        f"at {size}, log_prob changes by {difference:.4g} nats when expanded",
    )
    return f"largest deviation {off:.1f} standard errors"


def dtype_and_device(setting: Setting) -> str:
    """Weights and log-probabilities have the dtype of the logits, at least float32, and their device."""
    size = setting.sizes[0]
    for dtype in DTYPES:
        logits = setting.logits(size).to(dtype)
        routing = setting.make(logits, capacity=size.capacity)
        value = routing.sample()
        results = {
            "importance_weights": routing.importance_weights(value),
            "router_log_prob": routing.router_log_prob(value),
        }
        with suppress(NotImplementedError):
            results["log_prob"] = routing.log_prob(value)
        for what, result in results.items():
            # Ratios and sums of half precision would be off by half a percent.
            wanted = torch.promote_types(dtype, torch.float32)
            expect(result.dtype == wanted, f"with logits of {dtype}, {what} has dtype {result.dtype}, not {wanted}")
        for what, result in (results | {"sample": value, "mode": routing.mode}).items():
            expect(
                result.device == logits.device, f"with logits on {logits.device}, {what} is on device {result.device}"
            )
    return f"{setting.device}, {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}"


def provenance(setting: Setting) -> str:
    """
    Under TraceGraph_ELBO, draws and log-probabilities know which sites they depend on, and weights find a wrapped
    value.

    Lost provenance makes TraceGraph_ELBO leave out costs without a word. Whatever leaves torch loses it: numpy, numba,
    ``.item()``, in-place writes into a fresh tensor.
    """
    size = setting.sizes[0]
    routing = setting.routing(size)
    # In a second layer, the logits depend on the site of the first.
    layered = setting.make(track_provenance(setting.logits(size), frozenset({"earlier"})), capacity=size.capacity)
    kept_by_value = get_provenance(layered.sample())
    expect("earlier" in kept_by_value, f"logits that depend on a site 'earlier' give a draw that knows {kept_by_value}")
    with pyro.poutine.block(), TrackNonReparam():
        value = pyro.poutine.trace(lambda: pyro.sample("z", routing)).get_trace().nodes["z"]["value"]
    functions = {"router_log_prob": routing.router_log_prob, "log_prob": routing.log_prob}
    kept = []
    for what, function in functions.items():
        try:
            result = function(value)
        except NotImplementedError:
            continue
        expect("z" in get_provenance(result), f"{what} of site 'z' has lost its provenance: {get_provenance(result)}")
        kept.append(what)
    wrapped = detach_provenance(routing.importance_weights(value))
    plain = routing.importance_weights(detach_provenance(value))
    expect(torch.equal(wrapped, plain), "importance_weights of a value that carries provenance differ")
    return ", ".join(kept)


def copies(setting: Setting) -> str:
    """``copy.deepcopy`` and ``pickle`` give distributions that go on, and values that keep their weights."""
    routing = setting.routing(setting.sizes[0])
    value = routing.sample()
    expected = routing.importance_weights(value)
    functions: dict[str, Callable[[Any], Any]] = {
        "copy.deepcopy": copy.deepcopy,
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    }
    for name, function in functions.items():
        try:
            copied = function(routing)
            weights = copied.importance_weights(function(value))
            copied.sample()
        except Exception as error:
            raise ClauseFailed(f"{name}: {type(error).__name__}: {error}") from error
        difference = float((weights - expected).abs().max())
        expect(difference <= 1e-9, f"{name}: the weights of a draw change by {difference:.4g}")
    return ""


def seeds(setting: Setting) -> str:
    """``torch.manual_seed`` fixes the draw, and the next draw is another."""
    size = setting.sizes[0]
    routing = setting.routing(size)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(routing.sample(torch.Size((50,))))
    different = int((draws[0] != draws[1]).flatten(1).any(-1).sum())
    expect(not different, f"at {size}, {different} of 50 draws differ under the same torch.manual_seed")
    if setting.choices(size) > 1:
        following = routing.sample(torch.Size((50,)))
        expect(not torch.equal(draws[1], following), f"at {size}, 50 further draws repeat the 50 before")
    return ""


def tracing(setting: Setting) -> str:
    """``torch.jit.trace`` around a draw is an error: the trace would repeat one draw for ever."""
    size = setting.sizes[0]

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return setting.make(logits, capacity=size.capacity).sample()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace does not see: that is the point
        try:
            traced = torch.jit.trace(draw, (setting.logits(size),), check_trace=False)
        except Exception as error:
            return f"refused: {error}"
        draws = [traced(setting.logits(size)) for _ in range(50)]
    repeated = sum(torch.equal(value, draws[0]) for value in draws)
    raise ClauseFailed(
        f"a draw under torch.jit.trace is not refused, and {repeated} of 50 runs of the trace give the same draw"
    )


def refusals(setting: Setting) -> str:
    """
    NaN logits, fewer allowed experts than a datapoint needs, a bad capacity and, where nobody can be dropped, too many
    datapoints are refused by a ValueError that names the argument.
    """
    size = setting.sizes[0]
    limited, drops = setting.routing(size).limited, setting.routing(size).drops
    logits = setting.logits(size)
    _expect_refused(setting, "NaN logits", "logits", logits.masked_fill(logits > 0, torch.nan), size.capacity)
    m = setting.num_selected
    if m is not None and m > 1:
        few = logits.index_fill(-1, torch.arange(m - 1, size.num_experts, device=logits.device), -torch.inf)
        _expect_refused(setting, f"{m - 1} allowed experts", f"num_selected={m}", few, size.capacity)
    if not limited:
        raise ClauseSkipped("NaN logits are refused; limited is False, so capacity was not tried")
    for bad in (0, -1, 1.5):
        _expect_refused(setting, f"capacity={bad}", "capacity", logits, bad)
    if drops:
        return ""
    crowd = torch.zeros(size.num_experts * size.capacity + 1, size.num_experts, device=setting.device)
    _expect_refused(setting, f"{len(crowd)} datapoints for {len(crowd) - 1} slots", "capacity", crowd, size.capacity)
    return ""


def _expect_refused(setting: Setting, what: str, argument: str, logits: torch.Tensor, capacity: Any) -> None:
    try:
        setting.make(logits, capacity=capacity, **setting.validated())
    except ValueError as error:
        expect(argument in str(error), f"the ValueError for {what} does not name {argument!r}: {error}")
    except Exception as error:
        raise ClauseFailed(f"{what}: raised {type(error).__name__} instead of ValueError: {error}") from error
    else:
        raise ClauseFailed(f"{what}: accepted, where a ValueError that names {argument!r} is due")
