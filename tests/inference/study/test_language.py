"""The language model at its gate: what the two arms train, and what stays."""

import pyro
import pytest
import torch
from torch import Tensor

from inference.study import language
from inference.study.language import LanguageRun, train_language
from inference.study.training import train
from models.language import LanguageModel
from models.text import text_data
from prob_moe.estimators import TraceMixture_ELBO

SMALL = {"num_seeds": 2, "num_steps": 3, "batch_size": 2, "context": 16, "judged_on": "validation"}


def run_of(arm: str, **changes: object) -> LanguageRun:
    return LanguageRun(arm, 0.006, 0.0, **(SMALL | changes))


def batch() -> tuple[Tensor, Tensor]:
    text = text_data().train[:34].view(2, 17)
    return text[:, :-1], text[:, 1:]


@pytest.mark.parametrize("router", ["bytes", "hidden"])
def test_the_bound_of_all_experts_is_the_exact_marginal_likelihood(router: str) -> None:
    pyro.set_rng_seed(0)
    model = language.language_model(run_of("exact-marginal", router=router))
    x, y = batch()
    exact = -model.predict(x, num_selected=4).log_prob(y).sum()
    for seed in range(2):
        pyro.set_rng_seed(seed)
        assert TraceMixture_ELBO().loss(model, None, x, y) == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("router", ["bytes", "hidden"])
def test_a_frozen_router_stays_and_its_favourite_is_trained(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[LanguageModel] = []
    fit = language._fit
    before: list[dict[str, Tensor]] = []

    def remember(run: LanguageRun, model: LanguageModel, text: Tensor) -> None:
        models.append(model)
        before.append({name: value.clone() for name, value in model.state_dict().items()})
        fit(run, model, text)

    monkeypatch.setattr(language, "_fit", remember)
    train_language(run_of("frozen-router", router=router))
    assert len(models) == 2
    for model, start in zip(models, before):
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
        block = "feed_forward.1."
        assert not any(name.startswith(block + "router.") for name in moved)
        assert any(name.startswith(block + "experts.") for name in moved)
        assert "readout.weight" in moved


def test_both_arms_train_and_are_judged_on_all_seeds() -> None:
    exact, frozen = (train(run_of(arm)) for arm in ("exact-marginal", "frozen-router"))
    assert set(exact.metrics) == {f"{name}, {way}" for name in ("nll", "error") for way in ("1", "2", "all")} | {
        "nll",
        "error",
    }
    assert set(frozen.metrics) == {"nll, as trained", "error, as trained", "nll", "error"}
    for record in (exact, frozen):
        assert all(len(values) == 2 for values in record.metrics.values())
        assert all(nats < 6.5 for nats in record.metrics["nll"])
    assert train(run_of("exact-marginal")).metrics == exact.metrics


def test_another_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="got arm 'switch'"):
        train_language(run_of("switch"))
