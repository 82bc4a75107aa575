"""Mixtures in files: weights with their schema, and exported graphs."""

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts


def mixture(num_experts: int = 3, hidden: int = 4, dtype: torch.dtype = torch.float64) -> MixtureOfExperts:
    return MixtureOfExperts(
        nn.Linear(2, num_experts, dtype=dtype),
        BatchedExperts(num_experts, 2, hidden, 2, dtype=dtype),
        lambda out: dist.Normal(out[..., 0], out[..., 1].exp()),
        capacity=10,
    )


def test_weights_survive_a_file(tmp_path: Path) -> None:
    one, other, x = mixture(), mixture(), torch.randn(5, 2, dtype=torch.float64)
    one.save(tmp_path / "weights")
    assert not torch.equal(one.predict(x).mean, other.predict(x).mean)
    assert other.load_weights(tmp_path / "weights") is other
    torch.testing.assert_close(one.predict(x).mean, other.predict(x).mean, rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(num_experts=4), r"router.weight is float64 \(3, 2\) in the file and float64 \(4, 2\) in the mixture"),
        (dict(hidden=5), r"experts.hidden.bias is float64 \(3, 4\) in the file and float64 \(3, 5\)"),
        (dict(hidden=None), "experts.hidden.bias is not in the mixture"),
        (dict(dtype=torch.float32), r"router.bias is float64 \(3,\) in the file and float32 \(3,\)"),
    ],
)
def test_another_schema_is_refused_and_nothing_is_filled(other: dict, message: str, tmp_path: Path) -> None:
    mixture().save(tmp_path / "weights")
    filled = mixture(**other)
    before = {name: value.clone() for name, value in filled.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        filled.load_weights(tmp_path / "weights")
    for name, value in filled.state_dict().items():
        assert torch.equal(value, before[name])


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    mixture().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is no file of a saved mixture, or a part of one"):
        mixture().load_weights(path)
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(ValueError, match="is of version 7; this library reads 1"):
        mixture().load_weights(path)
    path.write_bytes(whole.replace(b"prob_moe.mixture", b"prob_moe.sklearn"))
    with pytest.raises(ValueError, match="is a file of safetensors, but not of a saved mixture"):
        mixture().load_weights(path)


@pytest.mark.parametrize("num_selected", [None, 2])
def test_an_exported_graph_takes_any_number_of_datapoints(num_selected: int | None, tmp_path: Path) -> None:
    model = mixture()
    graph = model.export(torch.randn(4, 2, dtype=torch.float64), num_selected=num_selected)
    torch.export.save(graph, tmp_path / "graph.pt2")
    loaded = torch.export.load(tmp_path / "graph.pt2").module()
    for n in (1, 3, 50):
        x = torch.randn(n, 2, dtype=torch.float64)
        log_weights, means, scales = loaded(x)
        law = model.predict(x, num_selected=num_selected)
        assert log_weights.shape == means.shape == scales.shape == (n, num_selected or 3)
        torch.testing.assert_close(log_weights.exp().sum(-1), torch.ones(n, dtype=torch.float64))
        torch.testing.assert_close((log_weights.exp() * means).sum(-1), law.mean)
        second = (log_weights.exp() * (means.square() + scales.square())).sum(-1)
        torch.testing.assert_close(second - law.mean.square(), law.variance)


def test_what_cannot_be_exported_is_said() -> None:
    classes = mixture()
    classes.likelihood = lambda out: dist.Categorical(logits=out)
    with pytest.raises(ValueError, match="the likelihood has no finite mean and scale"):
        classes.export(torch.randn(4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must be an example of shape \(n, d\)"):
        mixture().export(torch.randn(1, 2, dtype=torch.float64))
