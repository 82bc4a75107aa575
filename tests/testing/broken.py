"""Assignment distributions that break one clause of the contract each."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

from prob_moe.distributions import AssignmentDistribution, CapacitySkip, IndependentRouting


class ForgetsTheSample(CapacitySkip):
    def importance_weights(self, value: Tensor) -> Tensor:
        return super().importance_weights(value).squeeze(0)


class SqueezesPlatesOfOne(CapacitySkip):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        value = super().sample(sample_shape)
        return value.squeeze(0) if self.batch_shape == (1, 1) else value


class DrawsInt32(CapacitySkip):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape).int()


class NamesAnExpertTooMany(CapacitySkip):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape) + 1


class HidesDrops(CapacitySkip):
    """Says that nobody is dropped, in support as in `drops`."""

    drops = False


class OverflowsCapacity(IndependentRouting):
    """Its support has no capacity either, so that only a count of the loads tells."""

    limited = True

    @property
    def support(self) -> Any:
        return IndependentRouting(self.logits).support


class MiscountsLoads(CapacitySkip):
    def loads(self, value: Tensor) -> Tensor:
        return super().loads(torch.where(value < 0, ~value, value))


class EnumeratesTwice(CapacitySkip):
    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = super().enumerate_support(expand)
        return torch.cat([values, values[:1]])


class EnumeratesTooLittle(CapacitySkip):
    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = super().enumerate_support(expand)
        return values[: max(1, len(values) // 2)]


class EnumeratesWithoutBatch(CapacitySkip):
    def enumerate_support(self, expand: bool = True) -> Tensor:
        return super().enumerate_support(expand=False)


class HasNoEnumerationAfterAll(CapacitySkip):
    def enumerate_support(self, expand: bool = True) -> Tensor:
        raise NotImplementedError("too many")


class ServesAtRandom(CapacitySkip):
    @property
    def mode(self) -> Tensor:
        return self.sample()


class ServesNobody(IndependentRouting):
    @property
    def mode(self) -> Tensor:
        return ~super().mode


class ChoosesForbiddenExperts(CapacitySkip):
    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(logits.clamp(min=-2.0), **kwargs)


class WeighsForbiddenExpertsInfinite(IndependentRouting):
    def importance_weights(self, value: Tensor) -> Tensor:
        return super().importance_weights(value) - 0 * self.logits.min()


class RoutesPadding(CapacitySkip):
    def _code_padding(self, value: Tensor) -> Tensor:
        return value


class PaddingTakesCapacity(CapacitySkip):
    def _present(self, like: Tensor) -> Tensor:
        return torch.ones_like(like, dtype=torch.bool)


class ScoresPadding(CapacitySkip):
    """Takes padding out by a product, and 0 * NaN is NaN."""

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(logits, **kwargs)
        self._raw = logits

    def router_log_prob(self, value: Tensor) -> Tensor:
        return super().router_log_prob(value) + 0 * self._raw.sum(-1)


class DifferentiatesPadding(IndependentRouting):
    """Its values are right; the gradient passes through what stands in padding before the mask."""

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(logits, **kwargs)
        if self.mask is not None:
            self.logits = torch.where(self.mask.unsqueeze(-1), logits.exp().log(), 0.0)


class ScoresDropsAsZero(CapacitySkip):
    def router_log_prob(self, value: Tensor) -> Tensor:
        return super().router_log_prob(value) * (value >= 0)


class DetachesTheRouter(CapacitySkip):
    def router_log_prob(self, value: Tensor) -> Tensor:
        return super().router_log_prob(value).detach()


class ForgetsWhoWasDropped(CapacitySkip):
    """Not normalised: the probability of the choices alone."""

    def log_prob(self, value: Tensor) -> Tensor:
        return self.router_log_prob(value).sum(-1)


class TakesAnotherLaw(IndependentRouting):
    """Normalised, but a law of other logits than the draws have."""

    def log_prob(self, value: Tensor) -> Tensor:
        return IndependentRouting(0.9 * self.logits).log_prob(value)


class DetachesTheNormaliser(IndependentRouting):
    def log_prob(self, value: Tensor) -> Tensor:
        logits = self.logits
        picked = logits.expand(*value.shape, logits.shape[-1]).gather(-1, value.unsqueeze(-1)).squeeze(-1)
        return (picked - logits.detach().logsumexp(-1)).sum(-1)


class DetachesLogProb(IndependentRouting):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).detach()


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_prob: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return log_prob.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        return None, upstream.sum() * ctx.saved_tensors[0], None


class HasNoCurvature(IndependentRouting):
    """Right gradients of sums, whose own derivative is 0 without a word."""

    def log_prob(self, value: Tensor) -> Tensor:
        logits = self.logits.detach().requires_grad_()
        with torch.enable_grad():
            log_prob = IndependentRouting(logits).log_prob(value)
            (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        return _OnceDifferentiable.apply(log_prob.detach(), self.logits, gradient / log_prob.numel())


class HoldsTheRouterFixed(IndependentRouting):
    """Right gradients, with a graph of their own that leaves out how p changes."""

    def log_prob(self, value: Tensor) -> Tensor:
        p = self.logits.softmax(-1).detach()
        log_prob = super().log_prob(value)
        flat = (self.logits * (one_hot(value, self.num_experts) - p)).sum((-2, -1))
        return log_prob.detach() + flat - flat.detach() + 0 * self.logits.square().sum()


class ScoresWithoutNormaliser(IndependentRouting):
    def score_function(self, value: Tensor) -> Tensor:
        return DetachesTheNormaliser(self.logits).log_prob(value)


class LeavesOutWeights(CapacitySkip):
    def importance_weights(self, value: Tensor) -> Tensor:
        return (value >= 0).to(self.logits.dtype)


class WeighsDropped(CapacitySkip):
    """Unbiased: every choice counts 1, dropped or not."""

    def importance_weights(self, value: Tensor) -> Tensor:
        return torch.ones_like(value, dtype=self.logits.dtype)


class WeighsNegatively(IndependentRouting):
    """Unbiased too, by a control variate."""

    def importance_weights(self, value: Tensor) -> Tensor:
        return 1 + 3 * (2.0 * torch.randint(2, value.shape, device=value.device) - 1).to(self.logits.dtype)


class DifferentiatesWeights(IndependentRouting):
    def importance_weights(self, value: Tensor) -> Tensor:
        return super().importance_weights(value) * (1 + self.logits.sum() - self.logits.sum().detach())


class ExpandsOneDraw(IndependentRouting):
    """As a lazy expand would do: draw once, and repeat."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> AssignmentDistribution:
        new = super().expand(batch_shape, _instance)
        new._base = self
        return new

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        base = getattr(self, "_base", None)
        if base is None:
            return super().sample(sample_shape)
        return base.sample().expand(self.shape(sample_shape))


class ExpandsToTheSameShape(IndependentRouting):
    def expand(self, batch_shape: Any, _instance: Any = None) -> AssignmentDistribution:
        return self


class WeighsInDouble(CapacitySkip):
    def importance_weights(self, value: Tensor) -> Tensor:
        return super().importance_weights(value).double()


class LeavesTheDevice(CapacitySkip):
    @property
    def mode(self) -> Tensor:
        return super().mode.to("meta")


class LeavesTorch(IndependentRouting):
    """log_prob through a detour that Pyro cannot follow."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(torch.tensor(value.tolist(), device=self.logits.device))


class SamplesOutsideTorch(IndependentRouting):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.tensor(super().sample(sample_shape).tolist(), device=self.logits.device)


class KnowsDrawsByIdentity(CapacitySkip):
    """The draw is looked up by `is`: neither Pyro's wrapped value nor a copy finds it."""

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        self._last = super().sample(sample_shape)
        return self._last

    def importance_weights(self, value: Tensor) -> Tensor:
        if value is not self._last:
            raise ValueError("not my draw")
        return super().importance_weights(value)


class WeighsPairsOfChoices(CapacitySkip):
    """Forgets that both experts must have kept the datapoint."""

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(logits, num_selected=min(2, logits.shape[-1]), **kwargs)

    def _pair_log_overflow(self, value: Tensor) -> Any:
        return 0.0


class KeepsForCertain(CapacitySkip):
    def keep_probability(self, value: Tensor) -> Tensor:
        return torch.ones_like(value, dtype=self.logits.dtype)


class CannotBePickled(IndependentRouting):
    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(logits, **kwargs)
        self._scale = lambda x: x


class HasItsOwnRandomness(IndependentRouting):
    """Noise of a generator that no seed of the user reaches."""

    generator = torch.Generator().manual_seed(1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        uniform = torch.rand(self.shape(sample_shape), generator=self.generator, dtype=torch.float64)
        return (self.logits.softmax(-1).cumsum(-1)[..., :-1] < uniform.unsqueeze(-1)).sum(-1)


class RepeatsItself(IndependentRouting):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return super().sample(sample_shape)


class FreezesInTraces(IndependentRouting):
    pass


def _drawn_outside_torch(self: IndependentRouting, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
    scores = self.logits + torch.rand((*self.shape(sample_shape), self.num_experts))
    return torch.tensor(scores.argmax(-1).tolist())


# Put in its place after the class is made, where the base no longer sees it.
FreezesInTraces.sample = _drawn_outside_torch


class TakesAnyCapacity(CapacitySkip):
    def __init__(self, logits: Tensor, *, capacity: Any, **options: Any) -> None:
        super().__init__(logits, capacity=max(1, int(capacity)), **options)


class TakesNaN(CapacitySkip):
    def __init__(self, logits: Tensor, **options: Any) -> None:
        super().__init__(logits, **{**options, "validate_args": False})


class RefusesByAssertion(CapacitySkip):
    def __init__(self, logits: Tensor, *, capacity: Any, **options: Any) -> None:
        assert isinstance(capacity, int), "capacity"
        super().__init__(logits, capacity=capacity, **options)
