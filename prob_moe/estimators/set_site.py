"""The site that selects several experts per datapoint, and the likelihood of these experts."""

from dataclasses import dataclass
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from prob_moe.distributions import SelectedMixture
from prob_moe.estimators.sites import Site, assignment_sites, ordinary_sites


@dataclass(frozen=True)
class SetSite:
    """A site with ``num_selected`` in a pair of traces."""

    #: of the assignment, and its site in the model
    name: str
    site: Site
    #: the same site in the guide, where this draws it
    guide_site: Site | None
    #: the observation, its name, and the likelihoods that it has under the selected experts
    likelihood: Site
    likelihood_name: str
    mixture: SelectedMixture

    @property
    def drawn(self) -> Site:
        """Where the set was drawn."""
        return self.site if self.guide_site is None else self.guide_site

    def scaled(self, log_prob: Tensor) -> Tensor:
        """:returns: a log-probability of the observation (*batch, n), with its scale and its masks."""
        fn = self.likelihood["fn"]
        while isinstance(fn, MaskedDistribution):
            log_prob, fn = scale_and_mask(log_prob, mask=fn._mask), fn.base_dist
        scaled: Tensor = scale_and_mask(log_prob, self.likelihood["scale"], self.likelihood["mask"])
        return scaled


def set_site_of(model_trace: Trace, guide_trace: Trace) -> SetSite | None:
    """
    :returns: the one site that selects several experts per datapoint; None where every site selects one.
    :raises ValueError: if there are several, one with a single expert comes after it, it asks for a baseline, or its
        experts do not meet in exactly one :class:`SelectedMixture`.
    """
    sites = assignment_sites(model_trace)
    sets = [name for name, site in sites.items() if site["fn"].num_selected is not None]
    if not sets:
        return None
    name = sets[-1]
    if len(sets) > 1 or list(sites)[-1] != name:
        raise ValueError(
            f"of the assignment sites {list(sites)}, in order of execution, {sets} select several experts per "
            "datapoint (num_selected); only the last one of a network may"
        )
    site, guide_site = sites[name], assignment_sites(guide_trace).get(name)
    if (site if guide_site is None else guide_site)["infer"].get("baseline"):
        raise ValueError(
            f"assignment site {name!r} selects several experts, whose estimators need no baseline: leave it out"
        )
    mixtures = {other: _unmasked(s["fn"]) for other, s in ordinary_sites(model_trace).items()}
    mixtures = {other: fn for other, fn in mixtures.items() if isinstance(fn, SelectedMixture)}
    if len(mixtures) != 1:
        raise ValueError(
            f"assignment site {name!r} selects several experts, but {sorted(mixtures) or 'no site'} "
            f"{'have' if mixtures else 'has'} a SelectedMixture of them: observe y once with "
            "SelectedMixture(log_weights, router_log_prob, likelihood), as MixtureOfExperts does, or train what "
            "combines several by TraceBalanced_ELBO"
        )
    ((likelihood_name, mixture),) = mixtures.items()
    likelihood = model_trace.nodes[likelihood_name]
    return SetSite(name, site, guide_site, likelihood, likelihood_name, mixture)


def check_no_mixture(model_trace: Trace) -> None:
    """
    :raises ValueError: if a site has a :class:`SelectedMixture`, whose weights hold the procedure fixed.
    """
    for name, site in ordinary_sites(model_trace).items():
        if isinstance(_unmasked(site["fn"]), SelectedMixture):
            raise ValueError(
                f"site {name!r} has a SelectedMixture, whose weights hold the procedure fixed, where the balanced "
                "objective differentiates its law; use TraceMixture_ELBO or TraceRouting_ELBO"
            )


def _unmasked(distribution: Any) -> Any:
    while isinstance(distribution, MaskedDistribution):
        distribution = distribution.base_dist
    return distribution
