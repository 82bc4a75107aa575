"""A collapse is told, once, and stands in the report; a healthy fit says nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from inference import tasks
from inference.cli import app

FIT = ["fit", "digits", "--assignment", "independent", "--num-epochs", "2", "--batch-size", "500"]


def collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router begins at one expert for all."""
    real = tasks.Digits.build

    def build(self: tasks.Digits, options: Any) -> Any:
        model = real(self, options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("router") and parameter.dim() == 1:
                    parameter[0] += 1e3
        return model

    monkeypatch.setattr(tasks.Digits, "build", build)


def test_a_collapsed_fit_warns_once_and_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "run")
    collapse(monkeypatch)
    result = CliRunner().invoke(app, [*FIT, "--out", out])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("fewer than half of the experts are used in epoch 1") == 1
    shown = CliRunner().invoke(app, ["show", out])
    assert shown.exit_code == 0, shown.output
    assert "seed 0, fewer than half: assignment: 1.0 of" in (tmp_path / "run" / "report.html").read_text()
    shown = CliRunner().invoke(app, ["show", out, "--json"])
    routing = json.loads(shown.stdout)["last routing"]["assignment"]
    assert routing["agreement"] == 1
    assert routing["usage_perplexity"] == 1


def test_a_balanced_fit_says_nothing(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    result = CliRunner().invoke(app, [*FIT[:3], "gumbel-matching", *FIT[4:], "--out", out])
    assert result.exit_code == 0, result.output
    assert "fewer than half" not in result.output
