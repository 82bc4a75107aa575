"""The posterior of the piecewise task by NUTS, with the labels of the experts put in order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from pyro.infer import MCMC, NUTS
from torch import Tensor

from models.piecewise import PiecewiseData
from models.piecewise_bayes import FEATURES, BayesianPiecewise, Parameters, Prior
from prob_moe._arviz import az

#: group of the draws with the labels as the chains found them
RAW = "posterior_as_drawn"


@dataclass(frozen=True)
class Sampling:
    """
    How NUTS runs.

    :param num_jobs: processes that share the chains; the draws do not depend on it.
    """

    num_chains: int = 4
    num_warmup: int = 300
    num_draws: int = 300
    target_accept: float = 0.9
    num_jobs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        # r-hat compares chains.
        for name, least in (("num_chains", 2), ("num_warmup", 1), ("num_draws", 4), ("num_jobs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {getattr(self, name)!r}")
        if not 0 < self.target_accept < 1:
            raise ValueError(f"target_accept must lie inside (0, 1), got {self.target_accept!r}")


def sample_posterior(
    data: PiecewiseData,
    num_experts: int,
    sampling: Sampling | None = None,
    prior: Prior | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Any:
    r"""
    Draw from the posterior over router, experts and noise, with routing summed out.

    **Label switching.** The experts have no names: renumbering them changes neither prior nor likelihood, so every mode
    exists k! times. Chains that start apart settle in different copies, and stay there. Draws of "expert 0" then differ
    between chains although all agree on the function, and r-hat of the labels as drawn is far above 1. So every
    draw is relabelled: experts in ascending order of their router's slope. With logits linear in a scalar x this is the
    order in which they take over from left to right, since the logit of the steeper one gains on the other as x grows.
    Only labels that mean the same in every draw have means, r-hats and traces worth looking at; likelihood and
    predictions never depended on them. An expert more than the data need has no place in that order: it wanders,
    relabelled or not.

    :param data: one data set, x (n, 1) and y (n,).
    :param num_experts: k.
    :param advance: called after every finished chain.
    :returns: ``arviz.InferenceData``: posterior (experts and router (chain, draw, expert, feature), noise, and
        boundary, where neighbouring experts' logits cross), the same with labels as drawn in the group
        ``posterior_as_drawn``, sample_stats (diverging, lp), log_likelihood, posterior_predictive, observed_data,
        constant_data.
    :raises ValueError: on wrong arguments.
    """
    sampling = Sampling() if sampling is None else sampling
    target = BayesianPiecewise(data, num_experts, prior)
    seeds = np.random.SeedSequence(sampling.seed).generate_state(sampling.num_chains + 1)
    chains = []
    for chain in _run_chains(target, sampling, seeds[1:]):
        chains.append(chain)
        advance()
    pyro.set_rng_seed(int(seeds[0]))
    draws = {name: torch.stack([samples[name] for samples, _ in chains]) for name in chains[0][0]}
    return _inference_data(target, draws, np.stack([diverging for _, diverging in chains]))


def relabel(coefficients: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """
    Put experts in ascending order of their router's slope, draw by draw.

    :param coefficients: experts and router, (*, k, 2) each, the slope last.
    """
    order = coefficients["router"][..., 1].argsort(-1, kind="stable")[..., None]
    return {name: np.take_along_axis(values, order, axis=-2) for name, values in coefficients.items()}


def _run_chains(
    target: BayesianPiecewise, sampling: Sampling, seeds: NDArray[Any]
) -> Iterator[tuple[Parameters, NDArray[Any]]]:
    jobs = Parallel(n_jobs=min(sampling.num_jobs, sampling.num_chains), return_as="generator")
    return jobs(delayed(_run_chain)(target, sampling, int(seed)) for seed in seeds)


def _run_chain(target: BayesianPiecewise, sampling: Sampling, seed: int) -> tuple[Parameters, NDArray[Any]]:
    """:returns: draws by name, (num_draws, ...), and which of them diverged, (num_draws,)."""
    pyro.set_rng_seed(seed)
    kernel = NUTS(potential_fn=target.potential, full_mass=True, target_accept_prob=sampling.target_accept)
    chain = MCMC(
        kernel,
        num_samples=sampling.num_draws,
        warmup_steps=sampling.num_warmup,
        # Starts as far apart as the prior allows: chains that agree all the same have forgotten them.
        initial_params=target.prior_draw(),
        disable_progbar=True,
    )
    chain.run()
    diverging = np.zeros(sampling.num_draws, dtype=bool)
    diverging[chain.diagnostics()["divergences"]["chain 0"]] = True
    return chain.get_samples(), diverging


def _inference_data(target: BayesianPiecewise, draws: dict[str, Tensor], diverging: NDArray[Any]) -> Any:
    experts, router, noise = target.coefficients(draws)
    drawn = {"experts": experts.numpy(), "router": router.numpy()}
    if target.num_experts > 1:
        posterior = relabel(drawn)
        steps = np.diff(posterior["router"], axis=-2)
        posterior["boundary"] = 0.5 - steps[..., 0] / steps[..., 1]
    else:
        # Its only logit is 0 by definition: nothing to summarise.
        del drawn["router"]
        posterior = dict(drawn)
    if target.prior.noise_sigma:
        posterior["noise"] = noise.numpy()
    result = az.from_dict(
        posterior=posterior,
        sample_stats={"diverging": diverging, "lp": target.log_joint(draws).numpy()},
        log_likelihood={"y": target.log_likelihood(draws).numpy()},
        posterior_predictive={"y": target.predict(draws).numpy()},
        observed_data={"y": target.y.numpy()},
        constant_data={"x": target.x.numpy()},
        coords=_coords(target),
        dims=_DIMS,
    )
    raw = az.convert_to_dataset(drawn, coords=_coords(target), dims={name: ["label", "feature"] for name in drawn})
    result.add_groups({RAW: raw}, warn_on_custom_groups=False)
    return result


_DIMS = {
    "experts": ["expert", "feature"],
    "router": ["expert", "feature"],
    "boundary": ["left_expert"],
    "y": ["datapoint"],
    "x": ["datapoint"],
}


def _coords(target: BayesianPiecewise) -> dict[str, list[Any]]:
    k = target.num_experts
    return {
        "expert": list(range(k)),
        "label": list(range(k)),
        "left_expert": list(range(k - 1)),
        "feature": list(FEATURES),
        "datapoint": list(range(len(target.y))),
    }
