import pyro
import pytest


@pytest.fixture(autouse=True)
def _fresh_random_state() -> None:
    """Every test starts from the same seed, an empty parameter store, and with validation, which torch.compile ends."""
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
