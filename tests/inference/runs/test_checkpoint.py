"""Checkpoints hold what was put in; what is damaged, foreign, or cannot be written is refused; the old one stays."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import constraints
from safetensors import safe_open
from torch import nn

from inference.runs.checkpoint import (
    FORMAT,
    CheckpointError,
    DamagedCheckpointError,
    before,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from inference.training.param_store import param_store_state, set_param_store
from inference.training.random_state import random_state, set_random_state

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        tensor = tensor / (tensor > 0).double()  # infinities and NaN
    dtype = draw(st.sampled_from(DTYPES))
    return (tensor if dtype.is_floating_point else torch.nan_to_num(tensor)).to(dtype)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
states = st.dictionaries(
    st.text() | st.integers(),
    st.recursive(
        plain | tensors(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type and, bit for bit, in value."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[tensor.element_size()]
    return tensor.contiguous().view(whole)


@given(states)
@settings(max_examples=60)
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, state: dict) -> None:
    path = tmp_path_factory.mktemp("round") / "fit.checkpoint"
    save_checkpoint(path, {"seed": 0}, state)
    config, loaded = load_checkpoint(path)
    assert config == {"seed": 0}
    assert same(loaded, state)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content", [{1, 2}, nn.Linear(1, 1), nn.Parameter(torch.ones(1)), {"a": [object()]}, torch.Size([1])]
)
def test_what_could_not_be_read_again_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(TypeError, match=r"state\['x'\].* is of \w+; a checkpoint holds tensors and plain values"):
        save_checkpoint(tmp_path / "fit.checkpoint", {}, {"x": content})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "fit.checkpoint"
    save_checkpoint(path, {"seed": 0}, {"x": torch.arange(5.0)})
    return path


def test_every_truncation_and_every_flipped_byte_is_found(written: Path) -> None:
    content = written.read_bytes()
    for length in range(0, len(content), 37):
        written.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
            load_checkpoint(written)
    for position in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[position] ^= 1
        written.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint|format version"):
            load_checkpoint(written)


def test_another_version_is_named(written: Path) -> None:
    content = written.read_bytes().replace(f'"format":"{FORMAT}"'.encode(), b'"format":"7"', 1)
    written.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"has format version 7, and this program reads {FORMAT}"):
        load_checkpoint(written)


def test_tensors_have_names_that_anybody_can_read(written: Path) -> None:
    """Without a line of this program, and without running code."""
    with safe_open(written, "pt") as file:
        assert torch.equal(file.get_tensor("state.x"), torch.arange(5.0))
        assert json.loads(file.metadata()["content"])["config"] == {"items": [["seed", 0]]}


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    state = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "a": {"b": whole[0]}, "a.b": 1}
    save_checkpoint(tmp_path / "fit.checkpoint", {}, state)
    assert same(load_checkpoint(tmp_path / "fit.checkpoint")[1], state)


# Two are kept ---------------------------------------------------------------------------------------------------------


def test_two_are_kept(written: Path) -> None:
    for step in range(3):
        save_checkpoint(written, {}, {"step": step})
    assert load_newest(written) == ({}, {"step": 2}, None)
    assert load_checkpoint(before(written)) == ({}, {"step": 1})
    assert sorted(file.name for file in written.parent.iterdir()) == [written.name, before(written).name]


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "foreign"])
def test_where_the_newest_is_damaged_the_one_before_is_read(written: Path, damage: str) -> None:
    save_checkpoint(written, {"seed": 0}, {"x": 2})
    content = written.read_bytes()
    written.write_bytes({"truncated": content[:-1], "foreign": b"GIF89a"}.get(damage, b""))
    if damage == "missing":
        written.unlink()
    _, state, problem = load_newest(written)
    assert torch.equal(state["x"], torch.arange(5.0))
    assert problem.startswith(str(written))
    assert problem.endswith("so that the checkpoint before it is read")
    # The next one does not put the damaged one in the place of the one that was whole.
    save_checkpoint(written, {}, {"x": 3}, keep=False)
    assert load_checkpoint(written)[1] == {"x": 3}
    assert torch.equal(load_checkpoint(before(written))[1]["x"], torch.arange(5.0))


def test_where_both_are_damaged_the_newest_is_named(written: Path) -> None:
    save_checkpoint(written, {}, {})
    for path in (written, before(written)):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=r"fit\.checkpoint is truncated or damaged: put a copy"):
        load_newest(written)


def test_another_version_is_not_taken_for_damage(written: Path) -> None:
    """The version that wrote it loses nothing, and going on from the one before would."""
    save_checkpoint(written, {}, {})
    written.write_bytes(b"prob_moe checkpoint, format 2, sha256 00ff\nPK")
    with pytest.raises(CheckpointError, match=f"has format version 2, and this program reads {FORMAT}"):
        load_newest(written)


# Foreign files, full disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fit.checkpoint"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint of a fit"):
        load_checkpoint(path)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_one_untouched(
    written: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = written.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(CheckpointError, match=r"cannot write .*fit.checkpoint: No space left on device; .* untouched"):
        save_checkpoint(written, {}, {"x": torch.zeros(3)})
    monkeypatch.undo()
    assert written.read_bytes() == before
    assert [file.name for file in written.parent.iterdir()] == [written.name]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        save_checkpoint(tmp_path / "file" / "fit.checkpoint", {}, {})


def test_all_generators_go_on() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.gauss(0, 1), np.random.randn(), torch.randn(()).item()]  # noqa: NPY002

    draw()
    state = random_state()
    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first


def test_the_parameter_store_comes_back_tied_to_the_module(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)

    def run(module: nn.Module) -> None:
        pyro.module("linear", module)
        pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        pyro.param("share", torch.tensor(0.25), constraint=constraints.interval(0.0, 0.5))
        pyro.param("shift", torch.tensor(-3.0))

    run(module)
    path = tmp_path / "fit.checkpoint"
    save_checkpoint(path, {}, param_store_state(module))
    pyro.clear_param_store()
    other = nn.Linear(2, 1)
    set_param_store(other, load_checkpoint(path)[1])
    store = pyro.get_param_store()
    assert store.get_param("linear$$$weight") is other.weight
    assert [store[name].item() for name in ("scale", "share", "shift")] == pytest.approx([2.0, 0.25, -3.0])
    run(other)
    assert set(store.keys()) == {"linear$$$weight", "linear$$$bias", "scale", "share", "shift"}
    store["scale"].backward()
    assert dict(store.named_parameters())["scale"].grad is not None
