"""Tables in files, and a fit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from inference.cli import app

QUICK = ["--restarts", "3"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def rents(n: int = 120) -> pd.DataFrame:
    """Rents that follow the size of a flat, by one law in the city and by another one outside."""
    generator = np.random.default_rng(0)
    size = generator.uniform(20, 120, n).round(1)
    city = generator.uniform(size=n) < 0.5
    rent = np.where(city, 300 + 15 * size, 100 + 6 * size) + generator.normal(0, 30, n)
    kind = np.where(city, "city", np.where(size > 70, "village", "suburb"))
    return pd.DataFrame({"size": size, "kind": kind, "rooms": (size // 25 + 1).astype(int), "rent": rent.round(2)})


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "rents.csv"
    rents().to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def fitted(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rents"
    done("fit", "table", table, "--target", "rent", "--router-columns", "kind", *QUICK, "--out", out)
    return out
