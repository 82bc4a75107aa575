"""The switch that shifts all fixed seeds, in a process of its own."""

import os
import pkgutil
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from tests import seeds

DRAWS = """
import random, sys
import numpy as np, pyro, torch
{install}

torch.manual_seed({seed})
print(torch.randint(10**9, ()).item())
print(torch.randint(10**9, (), generator=torch.Generator().manual_seed({seed})).item())
pyro.set_rng_seed({seed})
print(torch.randint(10**9, ()).item(), random.randrange(10**9), np.random.randint(10**9))
np.random.seed({seed})
print(np.random.randint(10**9))
print(np.random.default_rng({seed}).integers(10**9), np.random.default_rng(seed={seed}).integers(10**9))
print(np.random.SeedSequence({seed}).generate_state(1))
random.seed({seed})
print(random.randrange(10**9))
# Points that a library scrambles by a seed of its own stay.
print(torch.quasirandom.SobolEngine(1, scramble=True, seed=3).draw(2))
print(isinstance(torch.default_generator, torch.Generator), isinstance(torch.Generator(), torch.Generator))
"""


def draws(seed: int, shift: int, install: str) -> str:
    """What a script that lies among the tests draws."""
    script = DRAWS.format(seed=seed, install=install)
    program = f"exec(compile({script!r}, {str(Path(__file__).with_name('script.py'))!r}, 'exec'))"
    environment = {**os.environ, seeds.VARIABLE: str(shift)}
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=seeds.ROOT, text=True, capture_output=True, check=True
    )
    return done.stdout


def test_every_seed_is_shifted_and_the_librarys_own_are_not() -> None:
    assert draws(7, 1000, "from tests import seeds; seeds.install()") == draws(1007, 0, "")


@pytest.mark.parametrize("path", ["torch.seed", "random.seed", "numpy.random.seed", "numpy.random.default_rng"])
def test_a_generator_without_a_seed_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="differ from run to run"):
        pkgutil.resolve_name(path)()


def test_other_packages_are_left_alone() -> None:
    """Pyro's function sets the seeds of three generators: those are not shifted once more."""
    pyro.set_rng_seed(3)
    assert torch.initial_seed() == 3 + seeds.SHIFT
    assert random.random() == random.Random(3 + seeds.SHIFT).random()
    names: dict = {"np": np}
    exec(compile("generator = np.random.default_rng()", "elsewhere.py", "exec"), names)
    assert isinstance(names["generator"], np.random.Generator)
