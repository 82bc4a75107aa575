"""Who works for whom in a model that is not trained any more, layer by layer."""

import torch
from torch import Tensor

from models.language import LanguageModel
from models.stacked import StackedMixture
from prob_moe.layer.base import Site
from prob_moe.mixture import MixtureOfExperts


@torch.no_grad()
def assignments_of(
    model: MixtureOfExperts | StackedMixture | LanguageModel,
    x: Tensor,
    *,
    sample: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """
    The assignment of x, taken as one batch with the capacity of training. A language model's bytes go where their own
    router says, without capacity. Predictions need none of this: see ``predict``.

    :param sample: draw the assignments; else their ``mode`` is used.
    :param mask: bool, as of the model.
    :returns: one for every layer, long, of as many entries as there are datapoints; (m, n) where the model selects m
        experts for each, and (B, m, T) for the bytes of B sequences.
    """
    if isinstance(model, LanguageModel):
        return model.causal_logits(x, sample=sample)[1]
    law = model.routing(x, mask)
    z = Site(law, law.sample() if sample else law.mode).assignment
    if isinstance(model, MixtureOfExperts):
        return (z,)
    hidden = model.process(x, z, law, mask)
    return z, *assignments_of(model.second, hidden, sample=sample, mask=z >= 0 if law.drops else mask)
