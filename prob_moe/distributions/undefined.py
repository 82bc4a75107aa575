"""What is said where a procedure has no joint law: what works instead."""

import inspect
import sys
from types import FrameType

from pyro.infer.inspect import get_dependencies, get_model_relations

# Both are decorated by effect handlers, whose wrapper is everywhere.
_ASK_FOR_PROVENANCE = tuple(inspect.unwrap(asking).__code__ for asking in (get_dependencies, get_model_relations))


def only_provenance_is_asked_for() -> bool:
    """Whether ``log_prob`` is called to see what it depends on, as ``pyro.render_model`` does, not for its value."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _ASK_FOR_PROVENANCE:
            return True
        frame = frame.f_back
    return False


def no_log_prob(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name} has no joint log_prob: where the site is drawn, TraceRouting_ELBO (router objective) works without; "
        "where it is observed or conditioned on, score it with router_log_prob or leave it out "
        "(trace.log_prob_sum(site_filter=...)); for the balanced objective use GumbelMatching or CapacitySkip"
    )


def no_entropy(name: str, instead: str | None) -> NotImplementedError:
    others = "IndependentRouting and CapacitySkip have one" if instead is None else f"{instead} estimates it"
    return NotImplementedError(f"{name} has no entropy in closed form; {others}")
