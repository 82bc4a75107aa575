"""Checkpoints: files that hold tensors and plain containers, written atomically and read without running code."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.runs.atomic import write_atomically

#: counts up when a checkpoint of the version before can no longer be read
FORMAT = 2
#: The first line of the file: what it is, the format version, and a digest of the rest, which finds every damage.
HEADER = "prob_moe checkpoint, format {format}, sha256 {digest}\n"
PLAIN = (type(None), bool, int, float, str)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which one, why, and what to do."""


def save_checkpoint(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    """
    Write a checkpoint in the place of the one before, in one indivisible step.

    :param config: what the state belongs to, by name: plain values.
    :param state: nested dicts, lists and tuples of tensors and plain values.
    :raises CheckpointError: if it cannot be written; the one before is untouched.
    :raises TypeError: if the state holds something that could not be read again.
    """
    check_plain(config, "config")
    check_plain(state, "state")
    buffer = io.BytesIO()
    torch.save({"config": config, "state": state}, buffer)
    content = buffer.getbuffer()
    header = HEADER.format(format=FORMAT, digest=hashlib.sha256(content).hexdigest())
    try:
        write_atomically(path, header.encode(), content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; the checkpoint before it, if there was one, is untouched"
        ) from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param device: where the tensors go.
    :returns: configuration and state.
    :raises CheckpointError: on a truncated, damaged or foreign file, or another version.
    """
    try:
        header, newline, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    fields = re.fullmatch(rb"prob_moe checkpoint, format (\d+), sha256 (\w+)", header)
    if fields is None or not newline:
        raise CheckpointError(
            f"{path} is not a checkpoint of a fit: put a copy of one in its place, or start anew with --overwrite"
        )
    version, digest = (field.decode() for field in fields.groups())
    if version != str(FORMAT):
        raise CheckpointError(
            f"{path} has format version {version}, and this program reads {FORMAT}: resume it with the version that "
            "wrote it, or start anew with --overwrite"
        )
    if digest != hashlib.sha256(content).hexdigest():
        raise CheckpointError(
            f"{path} is truncated or damaged: put a copy in its place, or start anew with --overwrite"
        )
    loaded = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return loaded["config"], loaded["state"]


def differences(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """
    :returns: what differs between two configurations, in words, or nothing.

    >>> differences({"seed": 0, "dtype": "float32"}, {"seed": 1, "dtype": "float32"})
    'seed was 0 and is 1 now'
    """
    names = [name for name in {**stored, **given} if stored.get(name) != given.get(name)]
    return "; ".join(f"{name} was {stored.get(name)} and is {given.get(name)} now" for name in names)


def check_plain(value: Any, place: str) -> None:
    """
    :raises TypeError: naming the place of a value that ``weights_only`` loading would refuse, or give back as another.
    """
    # Exact types: a subclass would come back as something else, or not at all.
    if type(value) is dict:
        for key, inner in value.items():
            if type(key) not in PLAIN:
                raise TypeError(f"{place} has the key {key!r} of {type(key).__name__}; use str or int")
            check_plain(inner, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            check_plain(inner, f"{place}[{index}]")
    elif type(value) is not Tensor and type(value) not in PLAIN:
        raise TypeError(f"{place} is of {type(value).__name__}; a checkpoint holds tensors and plain values")
