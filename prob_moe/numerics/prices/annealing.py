"""Annealed importance sampling of shadow prices, for densities that are too far from a Gaussian for plain weights.

Particles start at the Gaussian around the mode and follow the geometric path to the density, β from 0 to 1: at each β
the log-weight grows by Δβ (log density − log Gaussian), and a Hamiltonian move that leaves the density at this β
invariant keeps the particle up with it. The mean weight is an unbiased estimate of the integral however well
the moves mix (Neal 2001, Annealed importance sampling, Statistics and Computing 11); the momenta are refreshed in part
(Horowitz 1991, Physics Letters B 268). Particles are independent, so their weights tell the error.
"""

import math

import torch
from torch import Tensor

from prob_moe.numerics.prices.derivatives import density_and_gradient
from prob_moe.numerics.prices.estimate import Nodes, PriceEstimate, Spread
from prob_moe.numerics.prices.mode import find_mode
from prob_moe.numerics.prices.problem import PriceProblem, in_chunks

GROUP = 32  # particles that move together
LEAST_TEMPERATURES, MOST_TEMPERATURES = 100, 1600
LEAPFROG_STEPS = 2
STEP = 0.4  # in whitened coordinates of 64 dimensions; shorter in more
REFRESHED = 0.6  # share of the variance of a momentum that is new at every temperature
GOOD_VARIANCE = 0.25  # of log-weights: more temperatures lower it as much as they cost
LEAST_GROUPS = 4
MARGIN = 0.6  # of the tolerance: the standard error that is aimed at, because what is reported has a margin
MOST_GRADIENTS = 120_000  # of one problem, and
MOST_WORK = 16e9  # in elements, of the softmax and of the elimination
UNLIKE = 1e-6  # nats between the two ways to compute a density, above which neither is believed


def annealing(problem: PriceProblem, tolerance: float, start: Tensor, seed: int) -> PriceEstimate:
    """The integral of each problem of a batch, one after another.

    A few particles, which are not used again, show how many temperatures and particles would meet the tolerance; the
    work has an upper limit.

    :param tolerance: nats.
    :param start: prices to begin the search for the mode at, (starts, batch, k).
    :param seed: of the particles; a value depends on nothing else that is random, and not on its companions.
    """
    center, covariance = find_mode(problem, start)
    factor = torch.linalg.cholesky(covariance)
    values, errors, nodes = [], [], []
    for member in range(len(center)):
        index = torch.tensor([member], device=center.device)
        path = _Path(problem.select(index), center[member], factor[member], seed)
        value, error, prices, log_weights = path.integral(tolerance)
        values.append(value)
        errors.append(error)
        nodes.append(Nodes(index, prices, log_weights))
    return PriceEstimate.by("annealing", torch.cat(values), torch.cat(errors), nodes)


class _Path:
    """From the Gaussian N(center, factor factorᵀ) in the coordinates to the density, in whitened coordinates.

    :param problem: a single one.
    """

    def __init__(self, problem: PriceProblem, center: Tensor, factor: Tensor, seed: int):
        self.problem, self.center, self.factor, self.seed = problem, center, factor, seed
        self.free = problem.free[0].to(center)
        self.dimension = int(problem.free.sum())
        self.step = STEP * (64 / max(1, self.dimension)) ** 0.25
        self.log_volume = factor.diagonal().log().sum() + 0.5 * self.dimension * math.log(2 * math.pi)
        work = problem.logits.numel() + len(center) ** 3 / 16
        self.most_gradients = min(MOST_GRADIENTS, MOST_WORK / work)

    def integral(self, tolerance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log P and its error, (1,), prices (particles, 1, k) and their log-weights (particles, 1)."""
        temperatures, groups = self._plan(self.particles(LEAST_TEMPERATURES, 0)[1], tolerance)
        found, log_weights = (
            torch.cat(parts) for parts in zip(*(self.particles(temperatures, 1 + group) for group in range(groups)))
        )
        log_weights = log_weights.unsqueeze(-1) - math.log(len(log_weights))
        error = Spread.of(log_weights).error
        coordinates = (self.center + found @ self.factor.mT).unsqueeze(1)
        if not self._believed(coordinates[:GROUP]):
            error = torch.full_like(error, torch.inf)
        return log_weights.logsumexp(0), error, self.problem.prices(coordinates), log_weights

    def _plan(self, pilot: Tensor, tolerance: float) -> tuple[int, int]:
        """Numbers of temperatures and of groups, from the log-weights of a group that is not used again: who stops when
        the error that was seen is small stops where it is seen too small."""
        variance = float(pilot.var().nan_to_num(nan=torch.inf))
        longer = min(max(variance / GOOD_VARIANCE, 1.0), MOST_TEMPERATURES / LEAST_TEMPERATURES)
        temperatures = LEAST_TEMPERATURES * 2 ** math.ceil(math.log2(longer))
        left = variance * LEAST_TEMPERATURES / temperatures
        wanted = math.expm1(min(left, 10.0)) / (MARGIN * tolerance) ** 2 / GROUP
        affordable = self.most_gradients / (LEAPFROG_STEPS * temperatures * GROUP)
        return temperatures, max(LEAST_GROUPS, math.ceil(min(wanted, affordable)))

    def particles(self, temperatures: int, group: int) -> tuple[Tensor, Tensor]:
        """One group: where its particles end, (GROUP, k), whitened, and their log-weights (GROUP,)."""
        generator = torch.Generator().manual_seed(self.seed * 2**16 + group)

        def noise() -> Tensor:
            # As many numbers for every problem of this dimension, wherever its free prices are.
            drawn = torch.randn(GROUP, self.dimension, generator=generator, dtype=torch.float64)
            return drawn.new_zeros(GROUP, len(self.free)).masked_scatter_(self.free.cpu() > 0, drawn).to(self.free)

        point, momentum = noise(), noise()
        ratio, slope = self._ratio(point)
        log_weights = torch.zeros_like(ratio)
        for count in range(1, temperatures + 1):
            log_weights = log_weights + ratio / temperatures
            if count == temperatures:
                break
            beta = count / temperatures
            momentum = math.sqrt(1 - REFRESHED) * momentum + math.sqrt(REFRESHED) * noise()
            moved, speed, new_ratio, new_slope = point, momentum, ratio, slope
            for _ in range(LEAPFROG_STEPS):
                speed = speed + 0.5 * self.step * (beta * new_slope - moved)
                moved = moved + self.step * speed
                new_ratio, new_slope = self._ratio(moved)
                speed = speed + 0.5 * self.step * (beta * new_slope - moved)
            kinetic = 0.5 * (momentum.square() - speed.square() + point.square() - moved.square()).sum(-1)
            accepted = _accepted(beta * (new_ratio - ratio) + kinetic, generator)
            ratio = torch.where(accepted, new_ratio, ratio)
            accepted = accepted.unsqueeze(-1)
            point, slope = torch.where(accepted, moved, point), torch.where(accepted, new_slope, slope)
            momentum = torch.where(accepted, speed, -momentum)
        return point, log_weights

    def _ratio(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """log density − log Gaussian, (particles,), and its gradient (particles, k), in whitened coordinates."""
        coordinates = (self.center + white @ self.factor.mT).unsqueeze(1)
        parts = [density_and_gradient(self.problem, part) for part in in_chunks(coordinates, self.problem)]
        value, gradient = (torch.cat(tensors).squeeze(1) for tensors in zip(*parts))
        ratio = value + self.log_volume + 0.5 * white.square().sum(-1)
        return ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf), (gradient @ self.factor) * self.free + white

    def _believed(self, coordinates: Tensor) -> bool:
        """Whether the elimination without subtractions finds the same densities."""
        quick = density_and_gradient(self.problem, coordinates)[0]
        return bool((quick - self.problem.log_density(coordinates)).abs().max() < UNLIKE)


def _accepted(log_accept: Tensor, generator: torch.Generator) -> Tensor:
    """Metropolis' rule: bool, like ``log_accept``; a move to where nothing can be computed is not taken."""
    uniform = torch.rand(log_accept.shape, generator=generator, dtype=torch.float64).to(log_accept)
    return uniform.log() < log_accept.nan_to_num(nan=-torch.inf)
