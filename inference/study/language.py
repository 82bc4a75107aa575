"""The language model on the library's text, whose last block alone has experts: does its result depend on routing?"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyro
from torch import Tensor

from inference.study.cache import Record, short
from inference.study.serving import AS_TRAINED, EXPERTS
from inference.study.settings import SeedsRun
from inference.training.crops import Crops
from inference.training.schedule import warm_up_and_cosine
from inference.training.trainer import steps
from models.language import LanguageModel
from models.text import text_data, windows
from prob_moe.distributions import DependentRounding, IndependentRouting
from prob_moe.estimators import TraceMixture_ELBO, TraceRouting_ELBO

#: logits are multiplied by this where a router's favourite expert is to be certain
CERTAIN = 1e6


@dataclass(frozen=True)
class LanguageRun(SeedsRun):
    """
    The next byte of a text, seeds one after another; what a task's gate needs of it: the exact marginal likelihood,
    which the experts of a last block have, and a router that stays as it starts.

    :param router: what it sees, see :class:`~models.language.LanguageModel`.
    """

    task = "language"

    num_seeds: int = 8
    num_steps: int = 600
    router: Literal["bytes", "hidden"] = "bytes"
    num_experts: int = 4
    batch_size: int = 16
    context: int = 128

    @property
    def label(self) -> str:
        return f"the library's text, router of {'bytes' if self.router == 'bytes' else 'hidden features'}"


def train_language(run: LanguageRun) -> Record:
    """
    Train and measure on one thread.

    :raises ValueError: on another arm than the two of a gate.
    """
    start = time.process_time()
    text = text_data()
    held_out = windows(getattr(text, run.judged_on), run.context, run.context)
    measured = []
    for seed in range(run.seed, run.seed + run.num_seeds):
        pyro.set_rng_seed(seed)
        model = language_model(run)
        _fit(run, model, text.train)
        measured.append(_measure(run, model, *held_out))
    metrics = {name: [short(of_seed[name]) for of_seed in measured] for name in measured[0]}
    return Record(run.settings(), metrics, time.process_time() - start)


def language_model(run: LanguageRun) -> LanguageModel:
    """
    An untrained one.

    :raises ValueError: on another arm than the two of a gate.
    """
    make = partial(
        LanguageModel, num_experts=run.num_experts, experts_in="last", context=run.context, router=run.router
    )
    if run.arm == "exact-marginal":  # all experts of every byte
        return make(DependentRounding, num_selected=run.num_experts, capacity_factor=1.0)
    if run.arm == "frozen-router":
        return make(_favourite)
    raise ValueError(f"the language model knows the arms exact-marginal and frozen-router here, got arm {run.arm!r}")


def _favourite(logits: Tensor, **options: Any) -> IndependentRouting:
    """The router's favourite, for certain, which teaches the router nothing."""
    return IndependentRouting(CERTAIN * logits.detach(), **options)


def _fit(run: LanguageRun, model: LanguageModel, text: Tensor) -> None:
    elbo = TraceMixture_ELBO() if run.arm == "exact-marginal" else TraceRouting_ELBO()
    batches = Crops(text, length=run.context, batch_size=run.batch_size)

    def loss() -> Tensor:
        x, y = next(batches)
        return elbo.differentiable_loss(model, None, x, y) / x.numel()

    trained = steps(model, loss, num_steps=run.num_steps, learning_rate=run.learning_rate, schedule=warm_up_and_cosine)
    for _ in trained:
        pass


def _measure(run: LanguageRun, model: LanguageModel, x: Tensor, y: Tensor) -> dict[str, float]:
    """By name and way to serve; those without a way are of the last one, all experts or as trained."""
    measured: dict[str, float] = {}
    if run.arm == "exact-marginal":
        ways: dict[str, int | None] = {way: count or run.num_experts for way, count in EXPERTS.items()}
    else:
        ways = {AS_TRAINED: None}
    for way, num_selected in ways.items():
        law = model.predict(x, num_selected=num_selected)
        measured["nll"] = measured[f"nll, {way}"] = -law.log_prob(y).mean().item()
        measured["error"] = measured[f"error, {way}"] = (law.logits.argmax(-1) != y).double().mean().item()
    return measured
