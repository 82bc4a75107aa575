"""The same numbers on 1, 2 and 4 processes; and programs that get them wrong, which the same check finds out."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parallel import cases, programs
from tests.parallel.world import run_world

TOLERANCE = 1e-12
#: what one process gives, by name
REFERENCES: dict[str, dict[str, Tensor]] = {}


def reference(name: str) -> dict[str, Tensor]:
    """:returns: what a training gives on one process, which knows nothing of others."""
    if name not in REFERENCES:
        if name in cases.ELBOS:
            REFERENCES[name] = cases.infer(*cases.ELBOS[name])
        else:
            REFERENCES[name] = cases.train(cases.CASES["skip" if name in ("ddp", "fsdp") else name])
    return REFERENCES[name]


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Draws exactly, everything else to rounding."""
    for name, value in wanted.items():
        if name not in found:
            continue  # fewer steps
        if not value.is_floating_point():
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, each."""
    return run_world(2, programs.few_trainings, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("mesh", "name"),
    [
        ("divided", "skip"),
        ("divided", "skip, bound"),
        ("divided", "independent, gates"),
        ("divided", "loss-free bias"),
        ("divided", "Pyro, mixture"),
        ("divided", "ddp"),
        ("divided", "fsdp"),
        ("copied", "independent, slots"),
    ],
)
def test_two_processes_are_one(two, mesh, name):
    for found in two:
        assert found[mesh][name].keys() == reference(name).keys()
        assert_same(found[mesh][name], reference(name))


@pytest.mark.parametrize(
    "name",
    ["experts_within_group", "local_n", "averaged", "no name in the key", "groups counted in each process"],
)
def test_what_is_wrong_is_found_out(two, name):
    wanted = reference("skip")
    with pytest.raises(AssertionError):
        assert_same(two[0]["broken"][name] | two[1]["broken"][name], wanted)


def test_the_rest_of_a_broken_training_is_right(two):
    """It is the gradient that is found out, not a program that fails otherwise."""
    wanted = {name: value for name, value in reference("skip").items() if name.startswith("draw 0.")}
    assert len(wanted) == 4
    for name in ("experts_within_group", "averaged"):
        assert_same(two[0]["broken"][name], wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("served", ["", " served"])
def test_where_datapoints_go(two, dtype, served):
    for found in two:
        x, value, mask, out = found["labels"][f"label {dtype}{served}"]
        factor = torch.where(mask, value + 1, 0).to(dtype).unsqueeze(-1)
        assert out.dtype == dtype
        assert torch.equal(out, x * factor)
        x, _, mask, out = found["labels"][f"identity {dtype}{served}"]
        assert torch.equal(out, x)
    both = torch.cat([found["labels"][f"label {dtype}{served}"][1] for found in two])
    assert len(both[both >= 0].unique()) >= 4  # experts of both processes


ERRORS = {
    "more pieces than experts": "mesh divides the experts among 2 processes, but there are 1",
    "one process has other experts": "experts must be the same in all processes",
    "shapes of experts": "experts must be the same in all processes",
    "seeds of experts": "initial values of the experts must be the same in all processes",
    "seeds of the router": "initial values of the router must be the same in all processes",
    "one module": "must be a BatchedExperts or modules of one form, got one ModuleExperts",
    "sets of experts": "are one set, got batch_shape=(2,)",
    "shared parameters": "activation.weight of shape (1,) is shared",
    "rule": "NotImplementedError: SMEAR merges the parameters",
    "no mesh": "mesh must be a DeviceMesh",
    "names of the mesh": "mesh must have the dimensions ('data', 'expert')",
    "groups": "num_groups=3 is no multiple of the number of processes, 2",
    "groups apart": "num groups must be the same in all processes, got 2 in process 0 and 4 in process 1",
    "seeds of draws": "seed must be the same in all processes, got 0 in process 0 and 1 in process 1",
    "shapes of data": "processes must have data of one shape",
    "gradients": "processes must have data of one shape, with or without gradient",
    "no keys": "processes that share a batch need keyed draws",
    "pickle": "TypeError: experts on several processes cannot be pickled",
    "none": "nothing",
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_mistakes_are_named_in_every_process(two, mistake):
    for found in two:
        message = found["errors"][mistake]
        assert ERRORS[mistake] in message
        assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 4), (2, 2)])
def test_any_mesh_is_one_process(shape, tmp_path):
    world = run_world(shape[0] * shape[1], partial(programs.all_trainings, shape=shape), tmp_path, limit=1200)
    for found in world:
        assert found.keys() == {*cases.CASES, *cases.ELBOS, "ddp", "fsdp"}
        for name, values in found.items():
            assert values.keys() == reference(name).keys()
            assert_same(values, reference(name))
