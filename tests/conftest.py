import pyro
import pytest


@pytest.fixture(autouse=True)
def _fresh_random_state() -> None:
    """Every test starts from the same seed and an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
