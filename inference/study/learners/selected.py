"""Some experts of every datapoint, evaluated on it and on no other."""

from torch import Tensor

from prob_moe.mixture import MixtureOfExperts


def log_likelihoods_of(mixture: MixtureOfExperts, x: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """
    The cost is that of m experts a datapoint, not of all.

    :param x: (*batch, n, d).
    :param y: (*batch, n).
    :param chosen: m experts of every datapoint, which may coincide, long (*batch, m, n).
    :returns: log p(y_i | x_i, z_i = chosen), nats, (*batch, m, n).
    """
    out = mixture.experts(x, chosen, num_selected=chosen.shape[-2])
    log_likelihoods: Tensor = mixture.likelihood(out).log_prob(y.unsqueeze(-2))
    return log_likelihoods
