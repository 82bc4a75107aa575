"""Laws of classes."""

from typing import Any

import torch
from torch import Tensor

from prob_moe.sklearn.families.base import Family
from prob_moe.sklearn.table import Floats


class Classes(Family):
    """One of C classes, by the softmax of C - 1 linear predictors and a zero for the last class."""

    name = "classes"
    is_softmax = True

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        logits = torch.stack([*local, torch.zeros_like(local[0])])
        chosen = torch.nn.functional.one_hot(target[0].long(), len(logits)).mT.to(logits.dtype)
        return (logits.log_softmax(0) * chosen[:, None, None]).sum(0)

    def probabilities(self, predictors: Tensor) -> Tensor:
        """
        :param predictors: (C - 1, k, n).
        :returns: (C, k, n).
        """
        return torch.cat([predictors, torch.zeros_like(predictors[:1])]).softmax(0)

    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        raise NotImplementedError("classes have no quantiles; use probabilities")

    def on_predictor_scale(self, target: Tensor) -> None:
        return None
