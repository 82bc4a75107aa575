"""What can be imported from the top, and that asking for little loads little."""

import subprocess
import sys

import pytest

import prob_moe


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("name", sorted(prob_moe._rooms()))
def test_names_of_the_top(name: str) -> None:
    assert getattr(prob_moe, name).__module__.startswith("prob_moe.")
    assert name in dir(prob_moe)


def test_the_package_alone_loads_no_kernels() -> None:
    assert not {"numba", "torch", "pyro", "sklearn"} & loaded_by("import prob_moe")
    assert "sklearn" not in loaded_by("import prob_moe.mixture, prob_moe.layer")
    assert {"numba", "torch", "pyro"} <= loaded_by("from prob_moe import GumbelMatching")


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'GumbelMatchings'"):
        _ = prob_moe.GumbelMatchings
