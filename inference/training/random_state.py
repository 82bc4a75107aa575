"""The global random generators, as something that can be written down."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """:returns: the states of Python's, numpy's and torch's generators, on all devices. Pyro draws from torch's."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  (the one that pyro.set_rng_seed seeds)
    return {
        "python": (version, list(words), gauss),
        "numpy": {
            "key": numpy_state["state"]["key"].tolist(),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on drawing as from the moment at which :func:`random_state` was called."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    saved = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", np.array(saved["key"], dtype=np.uint32), saved["pos"], saved["has_gauss"], saved["gauss"])
    )
    # Generator states live on the CPU, wherever the other tensors of a checkpoint were sent.
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([device_state.cpu() for device_state in state["cuda"]])
