import pyro
import pytest
from hypothesis import settings

from tests import seeds

seeds.install()
# The same examples in every run, however slow the machine; with shifted seeds, others.
settings.register_profile("fixed", derandomize=not seeds.SHIFT, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _fresh_random_state() -> None:
    """Every test starts from the same seed, an empty parameter store, and with validation, which torch.compile ends."""
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
