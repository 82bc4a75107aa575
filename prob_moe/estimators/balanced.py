"""The balanced objective, in which the procedure is the model, through Pyro's own ELBOs."""

from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine.messenger import Messenger
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.stock_elbos import refuse_stock_elbos
from prob_moe.estimators.sites import Program, Site, is_assignment


class ScoreOnly(TorchDistribution):
    """
    An assignment distribution that enters an ELBO through its score function alone.

    In the balanced objective the procedure stands in model and guide alike, so its log-probabilities cancel. Leaving
    both out spares their evaluation; what remains is the score function times the cost.

    :param procedure: the assignment distribution.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's form)
    has_rsample = False

    def __init__(self, procedure: AssignmentDistribution) -> None:
        self.procedure = procedure
        super().__init__(procedure.batch_shape, procedure.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.procedure.support

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.procedure.sample(sample_shape)

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """:raises ValueError: where the guide that belongs to the model was left out, and no score function is."""
        refuse_stock_elbos(type(self.procedure).__name__)
        draw: Tensor = super().__call__(sample_shape)
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """:returns: zeros that still know where ``value`` comes from."""
        return torch.zeros_like(value, dtype=self.procedure.logits.dtype).sum(-1)

    def score_parts(self, value: Tensor) -> ScoreParts:
        return ScoreParts(self.log_prob(value), self.procedure.score_function(value), 0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ScoreOnly":
        return ScoreOnly(self.procedure.expand(batch_shape))


class _ScoreOnlyMessenger(Messenger):
    # Before sampling: afterwards, an outer trace has already recorded the site.
    def _pyro_sample(self, msg: Site) -> None:
        if is_assignment(msg):
            msg["fn"] = ScoreOnly(msg["fn"])


def _is_not_scored(msg: Site) -> bool:  # a function with a name can be pickled
    return not isinstance(msg["fn"], ScoreOnly)


class OwnProcedures:
    """
    A guide that draws the assignment sites of a model from their own procedures, by running the model.

    :param scored: the model, with assignment sites that are :class:`ScoreOnly`.
    """

    def __init__(self, scored: Program) -> None:
        self._draw = poutine.block(scored, hide_fn=_is_not_scored)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._draw(*args, **kwargs)


def balanced_objective(model: Program) -> tuple[Program, Program]:
    r"""
    A model and a guide with which Pyro's ELBOs estimate the *balanced objective*

    .. math:: B(\theta) = E_{Z \sim \mathrm{procedure}}[\textstyle\sum_i f_i(z_i)],

    unbiased for every likelihood, also where datapoints interact.

    The guide draws the assignment sites of the model from their own procedures; the score function is
    :meth:`~prob_moe.distributions.AssignmentDistribution.score_function`, and the log-probabilities, which cancel, are
    not evaluated. Latent sites other than assignments need a guide of their own and are not supported here.

    >>> import pyro
    >>> from prob_moe.distributions import CapacitySkip
    >>> def model(logits, y):
    ...     z = pyro.sample("z", CapacitySkip(logits, capacity=2))
    ...     with pyro.plate("data", len(y)), pyro.poutine.mask(mask=z >= 0):
    ...         pyro.sample("y", pyro.distributions.Normal(z.double(), 1.0), obs=y)
    >>> elbo = pyro.infer.TraceGraph_ELBO()
    >>> loss = elbo.loss_and_grads(*balanced_objective(model), torch.zeros(4, 2), torch.ones(4))
    """
    scored = _ScoreOnlyMessenger()(model)
    return scored, OwnProcedures(scored)
