"""What posterior draws say: summary with convergence, and which number of experts predicts best."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from inference.posterior.sampling import RAW
from prob_moe._arviz import az

#: r-hat above this means that chains have not come together (Vehtari et al. 2021, arXiv:1903.08008)
RHAT_LIMIT = 1.01


def summary(draws: Any) -> pd.DataFrame:
    """
    A row a scalar: mean, sd, effective sample sizes, r-hat of the relabelled draws, and beside it r-hat of the labels
    as the chains drew them (see :func:`~inference.posterior.sampling.sample_posterior`), empty where there are no
    labels. The last row, the log joint density, does not depend on labels: it shows whether chains disagree on more
    than names.

    :param draws: what ``sample_posterior`` gives.
    """
    table = az.summary(draws, kind="all", round_to="none")[["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]]
    lp = az.summary(draws.sample_stats, var_names=["lp"], kind="all", round_to="none")[table.columns]
    raw = az.summary(draws[RAW], kind="diagnostics", round_to="none").r_hat
    table = pd.concat([table, lp.set_axis(["log joint (nats)"])])
    table["r_hat_as_drawn"] = raw.reindex(table.index)
    return table.rename_axis("parameter")


def loo(draws: Any) -> Any:
    """
    Leave-one-out cross-validation by Pareto-smoothed importance sampling, one datapoint at a time.

    Source: Vehtari, Gelman & Gabry (2017), "Practical Bayesian model evaluation using leave-one-out cross-validation
    and WAIC".

    :returns: ``arviz.ELPDData`` with pointwise elpd and Pareto k, nats.
    """
    with warnings.catch_warnings():
        # It warns of large Pareto k, which we show.
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto", category=UserWarning)
        return az.loo(draws, pointwise=True)


def compare(loos: dict[int, Any]) -> pd.DataFrame:
    """
    Numbers of experts, best first: expected log predictive density of a new datapoint's set, nats.

    :param loos: :func:`loo` by number of experts.
    :returns: elpd, its standard error, difference to the best with standard error, effective number of parameters,
        stacking weight, largest Pareto k, and for how many datapoints it says that the estimate cannot be trusted.
    """
    order = sorted(loos, key=lambda k: -loos[k].elpd_loo)
    if len(loos) > 1:
        with warnings.catch_warnings():
            # arviz sorts in a way that pandas gives up.
            warnings.filterwarnings("ignore", message="The inplace keyword", category=DeprecationWarning)
            compared = az.compare({str(k): elpd for k, elpd in loos.items()}).loc[[str(k) for k in order]]
        difference, error, weight = (compared[name].to_numpy() for name in ("elpd_diff", "dse", "weight"))
    else:
        difference, error, weight = np.zeros(1), np.zeros(1), np.ones(1)
    return pd.DataFrame(
        {
            "elpd": [float(loos[k].elpd_loo) for k in order],
            "se": [float(loos[k].se) for k in order],
            "behind": difference,
            "behind_se": error,
            "p_loo": [float(loos[k].p_loo) for k in order],
            "weight": weight,
            "largest_pareto_k": [float(loos[k].pareto_k.max()) for k in order],
            "untrusted": [int((loos[k].pareto_k > loos[k].good_k).sum()) for k in order],
        },
        index=pd.Index(order, name="num_experts"),
    )
