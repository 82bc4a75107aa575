"""The task of the language model."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inference.registry import RuleSetting
from inference.tasks import Model, ModelOptions, Task, with_baselines
from inference.training.batches import BatchStream
from inference.training.crops import Crops
from inference.training.schedule import warm_up_and_cosine
from models.language import LanguageModel
from models.text import (
    KIND_NAMES,
    bigram_cross_entropy,
    bigram_entropy,
    byte_kinds,
    text_data,
    unigram_entropy,
    windows,
)
from prob_moe.rules import RoutingRule


def _to_text(part: tuple[Tensor, Tensor]) -> Tensor:
    """The text that was cut into windows without overlap, long (n,)."""
    x, y = part
    return torch.cat([x.flatten(), y[-1, -1:]])


class Language(Task):
    """
    The next byte of the text of Python's help. Validation and test parts are served causally, every byte by its own
    router, in windows that do not overlap.
    """

    name = "language"
    num_epochs = 8
    batch_size = 16
    learning_rate = 6e-3
    group_label = "kind of byte"
    group_names = KIND_NAMES
    context = 128
    schedule = staticmethod(warm_up_and_cosine)

    def __init__(self) -> None:
        self.train, self.validation, self.test = (windows(part, self.context, self.context) for part in text_data())
        self._train_text = _to_text(self.train)

    def build(self, options: ModelOptions) -> Model:
        """
        :raises ValueError: on options that the model does not have.
        """
        if options.baseline_entry.network:
            raise ValueError(f"the language task has no baseline that is a network, got baseline {options.baseline}")
        if options.load_balancing and options.rule is None:
            raise ValueError(
                "the language task has a load-balancing loss with rules only, got load_balancing="
                f"{options.load_balancing} with {options.assignment}"
            )
        sizes: dict[str, Any] = {
            "num_experts": 4 if options.num_experts is None else options.num_experts,
            "hidden_features": 256 if options.hidden_features is None else options.hidden_features,
        }
        model = LanguageModel(
            options.procedure if options.rule is None else None,
            rule=None if options.rule is None else partial(_rule, options, sizes["num_experts"]),
            **sizes,
            num_expert_blocks=options.num_layers,
            experts_in=options.experts_in or "first",  # type: ignore[arg-type]
            context=self.context,
            capacity_factor=options.capacity_factor,
            num_selected=options.num_selected,
            router=options.router or "bytes",  # type: ignore[arg-type]
            router_scale=options.router_scale,
        )
        return with_baselines(model, options.baseline_entry, 0)

    def batches(self, batch_size: int) -> BatchStream:
        return Crops(_to_text(self.train), length=self.context, batch_size=batch_size)

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        return byte_kinds(x).flatten()

    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        text = _to_text((x, y)).cpu()
        assert isinstance(model, LanguageModel)
        nats = -model.predict(x, sample=sample).log_prob(y).mean()
        return {
            "bits per byte": nats.item() / math.log(2),
            "reference: unigram entropy of this part (bits)": unigram_entropy(text),
            "reference: bigram entropy of this part (bits)": bigram_entropy(text),
            "reference: bigram fitted to the training part (bits)": bigram_cross_entropy(self._train_text, text),
        }


def _rule(options: ModelOptions, num_experts: int) -> RoutingRule:
    assert options.rule is not None
    return options.rule.build(RuleSetting(num_experts, options.capacity_factor, options.load_balancing))
