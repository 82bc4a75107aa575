import os

import pyro
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_random_state() -> None:
    """Every test starts from the same seed and an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
