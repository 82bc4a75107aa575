"""Numbers from .csv and .npy files, with errors that say what is wrong with the file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_logits(path: Path) -> Tensor:
    """
    :param path: a matrix, one row per datapoint: .csv with commas and no header, or .npy.
    :returns: float64 (n, k).
    :raises ValueError: if the file is not such a matrix.
    """
    values = _read(path)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{path} must hold a matrix (n, k), one row per datapoint; its shape is {values.shape}")
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise ValueError(f"{path} has NaN in row {row}, column {column} (counted from 0)")
    return torch.from_numpy(values)


def read_assignment(path: Path) -> Tensor:
    """
    :param path: n whole numbers, one below or beside the other.
    :returns: long (n,).
    :raises ValueError: if the file does not hold whole numbers.
    """
    values = _read(path)
    if 1 not in values.shape and values.ndim != 1:
        raise ValueError(f"{path} must hold one number per datapoint; its shape is {values.shape}")
    values = values.reshape(-1)
    if not (np.isfinite(values) & (values == np.round(values))).all():
        raise ValueError(f"{path} must hold whole numbers: experts, or -1 - expert for what is dropped")
    return torch.from_numpy(values.astype(np.int64))


def _read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if not path.is_file():
        raise ValueError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            if not path.read_text(encoding="utf-8").strip():
                raise ValueError("it is empty")
            values = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            raise ValueError("only .csv and .npy files are read")
        if values.dtype.kind not in "fiu":
            raise ValueError(f"its numbers are of type {values.dtype}")
        return values.astype(np.float64)
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read numbers from {path}: {reason}") from error
