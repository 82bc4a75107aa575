"""The contract, clause by clause: each a function of a setting that fails, is skipped, or says what it saw."""

from collections.abc import Callable

from prob_moe.testing.clauses import law, program, values, weights
from prob_moe.testing.clauses.setting import Setting

#: all clauses by name, in the order in which they are checked
CLAUSES: dict[str, Callable[[Setting], str]] = {
    "shapes": values.shapes,
    "values are long": values.long_values,
    "draws lie in the support": values.support,
    "capacity holds": values.capacity,
    "the enumeration is the support": values.enumeration,
    "the mode is in the support and deterministic": values.mode,
    "forbidden experts are never chosen": values.forbidden,
    "padding takes no part": values.padding,
    "what stands in padding changes nothing": values.junk,
    "router_log_prob is the router's": law.router,
    "log_prob is normalised": law.normalised,
    "log_prob equals frequencies": law.frequencies,
    "log_prob is differentiable": law.differentiable,
    "log_prob has second derivatives or says so": law.twice_differentiable,
    "score_function scores the law": law.score,
    "weights are unbiased": weights.unbiased,
    "weights of pairs are unbiased": weights.pairs,
    "keep probabilities count who is kept": weights.kept,
    "weights are 0 where dropped": weights.dropped,
    "weights carry no gradient": weights.without_gradient,
    "expanded draws are independent": program.expansion,
    "dtype and device are kept": program.dtype_and_device,
    "provenance is kept": program.provenance,
    "copies go on": program.copies,
    "the same seed gives the same draw": program.seeds,
    "a traced draw is refused": program.tracing,
    "bad arguments are refused": program.refusals,
}
