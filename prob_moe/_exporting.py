"""A mixture as a graph of tensors, for programs without Python."""

from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prob_moe.layer.parts import likelihood_of


class _MixtureTensors(nn.Module):
    """From x to what a mixture is made of."""

    def __init__(self, mixture: Any, num_selected: int | None) -> None:
        super().__init__()
        self.mixture, self.num_selected = mixture, num_selected

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p, out = self.mixture.weighted_outputs(x, num_selected=self.num_selected)
        law = likelihood_of(out, self.mixture.likelihood)
        return log_p, law.mean, law.stddev


def export_mixture(mixture: Any, x: Tensor, num_selected: int | None) -> ExportedProgram:
    """See :meth:`.MixtureOfExperts.export`."""
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x must be an example of shape (n, d) with n of at least 2, but has shape {tuple(x.shape)}")
    # Checks of values are branches that no graph has.
    with torch.no_grad(), pyro.validation_enabled(False):
        module = _MixtureTensors(mixture, num_selected).eval()
        try:
            law = likelihood_of(mixture.weighted_outputs(x)[1], mixture.likelihood)
            if not bool(torch.isfinite(law.stddev).all()):
                raise NotImplementedError
        except NotImplementedError:
            raise ValueError("the likelihood has no finite mean and scale, so there is nothing to export") from None
        return torch.export.export(module, (x,), dynamic_shapes=({0: Dim("n", min=1)},), strict=False)
