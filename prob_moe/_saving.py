"""One file of tensors and JSON, without pickled code: how estimators and mixtures are saved."""

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

#: Of a mixture's files; raised whenever older ones cannot be read as they are.
VERSION = 1

KIND = "prob_moe.mixture"


def write_file(
    path: str | PathLike[str],
    tensors: Mapping[str, Any],
    header: Mapping[str, Any],
    framework: Literal["np", "pt"],
    default: Callable[[Any], Any] | None = None,
) -> None:
    """
    Write one file in the format of safetensors, beside the old one, and put it in its place.

    :param header: for JSON, with "format" and "version".
    :param default: makes JSON of what is none.
    """
    destination = Path(path)
    unfinished = destination.with_name(destination.name + ".part")
    save_file: Any = safetensors.numpy.save_file if framework == "np" else safetensors.torch.save_file
    save_file(dict(tensors), unfinished, {"prob_moe": json.dumps(dict(header), default=default)})
    unfinished.replace(destination)


def read_file(
    path: str | PathLike[str], kind: str, what: str, version: int, framework: Literal["np", "pt"]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param kind: the "format" of the header.
    :param what: it is a file of, for messages.
    :returns: tensors and header.
    :raises ValueError: the file is no such file, a part of one, or of another version.
    """
    try:
        with safe_open(path, framework) as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get("prob_moe", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is no file of {what}, or a part of one: {error}") from None
    if header.get("format") != kind:
        raise ValueError(f"path={str(path)!r} is a file of safetensors, but not of {what}")
    if header["version"] != version:
        raise ValueError(f"path={str(path)!r} is of version {header['version']}; this library reads {version}")
    return tensors, header


def save_module(module: nn.Module, path: str | PathLike[str]) -> None:
    """Write parameters and buffers, in their dtypes."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    write_file(path, tensors, {"format": KIND, "version": VERSION, "class": type(module).__name__}, "pt")


@torch.no_grad()
def load_module(module: nn.Module, path: str | PathLike[str]) -> None:
    """
    Fill parameters and buffers, all of them or none.

    :raises ValueError: the file is no such file, or its names, shapes or dtypes are not those of the module.
    """
    tensors, header = read_file(path, KIND, "a saved mixture", VERSION, "pt")
    if header["class"] != type(module).__name__:
        raise ValueError(f"path={str(path)!r} holds a {header['class']}, not a {type(module).__name__}")
    own: dict[str, Tensor] = module.state_dict()
    wrong = [f"{name} is not in the file" for name in own if name not in tensors]
    wrong += [f"{name} is not in the mixture" for name in tensors if name not in own]
    for name in own.keys() & tensors.keys():
        there, here = _schema(tensors[name]), _schema(own[name])
        if there != here:
            wrong.append(f"{name} is {there} in the file and {here} in the mixture")
    if wrong:
        raise ValueError(f"path={str(path)!r} does not fit the mixture: {'; '.join(sorted(wrong))}")
    for name, value in own.items():
        value.copy_(tensors[name])


def _schema(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
