"""Nested containers of tensors and plain values, as tensors by name and a JSON text that says where each belongs."""

import json
import math
from typing import Any

from torch import Tensor

PLAIN = (type(None), bool, int, float, str)


def check_plain(value: Any, place: str) -> None:
    """
    :raises TypeError: naming the place of a value that could not be read again, or would come back as another.
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


def to_text(tree: Any) -> tuple[str, dict[str, Tensor]]:
    """
    :param tree: nested dicts, lists and tuples of tensors and plain values.
    :returns: JSON, and the tensors by name: the path to them, on the CPU, none of which shares memory with another.

    >>> import torch
    >>> to_text({"step": 3, "weight": torch.ones(2), "size": (2, 1)})
    ('{"step": 3, "weight": {"tensor": "weight"}, "size": {"tuple": [2, 1]}}', {'weight': tensor([1., 1.])})
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_plain(tree, "", tensors, set())), tensors


def from_text(text: str, tensors: dict[str, Tensor]) -> Any:
    """
    :returns: the tree of which :func:`to_text` made this.
    :raises ValueError: if it is not such a text, or KeyError if a tensor is missing.
    """
    return _tree(json.loads(text), tensors)


def _plain(value: Any, path: str, tensors: dict[str, Tensor], seen: set[int]) -> Any:
    if isinstance(value, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        whole = value.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != whole.nbytes
        tensors[name] = whole.clone() if shared else whole
        seen.add(storage.data_ptr())
        return {"tensor": name}
    if isinstance(value, dict):
        items = [(key, _plain(inner, _below(path, key), tensors, seen)) for key, inner in value.items()]
        # An object of JSON has texts for keys, and one that could be taken for one of ours is written out.
        if all(type(key) is str for key in value) and len(value) != 1:
            return dict(items)
        return {"items": [[_plain(key, "", tensors, seen), inner] for key, inner in items]}
    if isinstance(value, list | tuple):
        inner = [_plain(part, _below(path, index), tensors, seen) for index, part in enumerate(value)]
        return inner if isinstance(value, list) else {"tuple": inner}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _tree(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_tree(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        return {key: _tree(inner, tensors) for key, inner in value.items()}
    [(kind, inner)] = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "items":
            return {_tree(key, tensors): _tree(part, tensors) for key, part in inner}
        case "tuple":
            return tuple(_tree(part, tensors) for part in inner)
        case "float":
            return float(inner)
    raise ValueError(f"{kind!r} is not a kind of value")
