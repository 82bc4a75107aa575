"""Fitted estimators as files of tensors and JSON, without pickled code."""

from dataclasses import fields
from os import PathLike
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from prob_moe._saving import read_file, write_file
from prob_moe.sklearn.fitted import Fitted, FittedMixture, FittedNetwork
from prob_moe.sklearn.table import Standard

#: Of the files; raised whenever older ones cannot be read as they are.
VERSION = 1
FORMAT = "prob_moe.sklearn"


class SavedEstimator(BaseEstimator):
    """Estimators with :meth:`save` and :meth:`load`."""

    def save(self, path: str | PathLike[str]) -> None:
        """
        Write one file, in the format of safetensors: arrays, and in its header options and numbers as JSON. A
        ``random_state`` that is no int is left out.

        :raises sklearn.exceptions.NotFittedError: there is nothing to save.
        """
        check_is_fitted(self, "mixture_")
        options = self.get_params(deep=False)
        if not isinstance(options.get("random_state"), int):
            options["random_state"] = None
        arrays: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for name, value in (vars(self) | _flat(self.mixture_)).items():
            if name in options or name == "mixture_":
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                arrays[name] = np.ascontiguousarray(value)
            else:
                values[name] = value
        header = {"format": FORMAT, "version": VERSION, "class": type(self).__name__}
        header |= {"options": options, "values": values}
        write_file(path, arrays, header, "np", _plain)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """
        :returns: the estimator that was saved.
        :raises ValueError: the file is no such file, or one of another class or version.
        """
        arrays, header = read_file(path, FORMAT, "a saved estimator", VERSION, "np")
        if header["class"] != cls.__name__:
            raise ValueError(f"path={str(path)!r} holds a {header['class']}; use {header['class']}.load")
        estimator = cls(**header["options"])
        state = arrays | header["values"]
        for name, value in state.items():
            if isinstance(value, dict):
                state[name] = np.array(value["labels"], dtype=value["dtype"])
        estimator.mixture_ = _mixture(state)
        for name, value in state.items():
            if not name.startswith("mixture_."):
                setattr(estimator, name, value)
        return estimator


def _flat(mixture: Fitted) -> dict[str, Any]:
    """Fields by name; those of fields by two names."""
    flat: dict[str, Any] = {}
    for field in fields(mixture):
        value = getattr(mixture, field.name)
        if isinstance(value, Standard):
            value = value._asdict()
        if isinstance(value, dict):
            flat |= {f"mixture_.{field.name}.{name}": part for name, part in value.items()}
        else:
            flat[f"mixture_.{field.name}"] = value
    return flat


def _mixture(state: dict[str, Any]) -> Fitted:
    kind = FittedMixture if "mixture_.vector" in state else FittedNetwork
    values: dict[str, Any] = {}
    for field in fields(kind):
        name = f"mixture_.{field.name}"
        if name in state:
            values[field.name] = state[name]
            continue
        parts = {part[len(name) + 1 :]: value for part, value in state.items() if part.startswith(f"{name}.")}
        values[field.name] = Standard(**parts) if set(parts) == set(Standard._fields) else parts
    return kind(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"labels": value.tolist(), "dtype": str(value.dtype)}
    raise TypeError(f"{type(value).__name__} {value!r} cannot be saved as JSON")
