"""Checkpoints: files of tensors and one JSON, written atomically and read without running code, of which two are kept.

A checkpoint is one `safetensors <https://huggingface.co/docs/safetensors>`_ file. The tensors have the names of their
places in the state, and the JSON stands in the file's header, so that neither can be without the other. Whoever wants
to look into one needs ``safetensors.safe_open`` and nothing of ours.

Where several processes share a fit, one writes what all have, in the layout of a process alone, so that any number of
processes, or one that only looks, reads the file as it is. ``torch.distributed.checkpoint`` would let each process
write its own experts, which is needed where all of them, with the optimiser's moments, do not fit one process. It
writes several files with an index, which are not replaced in one step, and its safetensors storage is not in the lowest
torch that we support.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from inference.runs.atomic import write_atomically
from inference.runs.plain_tree import check_plain, from_text, to_text

#: counts up when a checkpoint of the version before can no longer be read
FORMAT = 3
NOT_YET = "0" * 64


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which one, why, and what to do."""


class DamagedCheckpointError(CheckpointError):
    """
    It is missing, truncated, or something else: the one before may still be whole.

    :param problem: in words.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}: put a copy of one in its place, or start anew with --overwrite")
        self.problem = problem


def before(path: Path) -> Path:
    """:returns: where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.name}.before")


def save_checkpoint(path: Path, config: dict[str, Any], state: dict[str, Any], *, keep: bool = True) -> None:
    """
    Write a checkpoint in the place of the one before, which is kept under another name.

    :param config: what the state belongs to, by name: plain values.
    :param state: nested dicts, lists and tuples of tensors and plain values.
    :param keep: False where what lies there is damaged, and :func:`before` is the last that is whole.
    :raises CheckpointError: if it cannot be written; the one before is untouched.
    :raises TypeError: if the state holds something that could not be read again.
    """
    check_plain(config, "config")
    check_plain(state, "state")
    text, tensors = to_text({"config": config, "state": state})
    try:
        content = save(tensors, {"format": str(FORMAT), "sha256": NOT_YET, "content": text})
        content = content.replace(NOT_YET.encode(), hashlib.sha256(content).hexdigest().encode(), 1)
        write_atomically(path, content, keep=before(path) if keep else None)
    except SafetensorError as error:
        raise TypeError(f"the state cannot be written: {error}") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; the checkpoint before it, if there was one, is untouched"
        ) from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param device: where the tensors go.
    :returns: configuration and state.
    :raises DamagedCheckpointError: on a missing, truncated, damaged or foreign file.
    :raises CheckpointError: on another version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    about = _about(path, content)
    if about["format"] != str(FORMAT):
        raise CheckpointError(
            f"{path} has format version {about['format']}, and this program reads {FORMAT}: resume it with the version "
            "that wrote it, or start anew with --overwrite"
        )
    digest = about.get("sha256", NOT_YET)
    if hashlib.sha256(content.replace(digest.encode(), NOT_YET.encode(), 1)).hexdigest() != digest:
        raise DamagedCheckpointError(f"{path} is truncated or damaged")
    tensors = {name: tensor.to(device) for name, tensor in load(content).items()}
    tree = from_text(about["content"], tensors)
    return tree["config"], tree["state"]


def load_newest(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """
    Read a checkpoint, or the one before where this one is damaged.

    :returns: configuration, state, and what was wrong with the newest, in words, if so.
    :raises CheckpointError: that of the newest, if the one before cannot be read either.
    """
    try:
        return *load_checkpoint(path, device), None
    except DamagedCheckpointError as error:
        try:
            config, state = load_checkpoint(before(path), device)
        except CheckpointError:
            raise error from None
        return config, state, f"{error.problem}, so that the checkpoint before it is read"


def _about(path: Path, content: bytes) -> dict[str, str]:
    """:returns: what a file says of itself: "format", and of the present one "sha256" and "content"."""
    earlier = re.match(rb"prob_moe checkpoint, format (\d+), sha256 \w+\n", content)
    if earlier is not None:
        return {"format": earlier[1].decode()}
    length = int.from_bytes(content[:8], "little")
    try:
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        if about.keys() == {"format", "sha256", "content"}:
            return {name: str(value) for name, value in about.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        # What begins as one of ours was one.
        if content[8 : 8 + length].startswith(b"{") and length < 2**32:
            raise DamagedCheckpointError(f"{path} is truncated or damaged") from None
    raise DamagedCheckpointError(f"{path} is not a checkpoint of a fit")


def differences(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """
    :returns: what differs between two configurations, in words, or nothing.

    >>> differences({"seed": 0, "dtype": "float32"}, {"seed": 1, "dtype": "float32"})
    'seed was 0 and is 1 now'
    """
    names = [name for name in {**stored, **given} if stored.get(name) != given.get(name)]
    return "; ".join(f"{name} was {stored.get(name)} and is {given.get(name)} now" for name in names)
