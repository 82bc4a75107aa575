"""The next byte in texts of several domains, where the same context goes on differently in each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.digits import Labelled, categorical
from models.domain_texts import DOMAINS, NUM_SYMBOLS, symbol_texts
from models.pieces import stacked_network
from models.remembered import Remembered
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.mixture import MixtureOfExperts

CONTEXT = 4  #: symbols that are seen one by one
CHUNK = 64  #: symbols before them, of which only the frequencies are seen
#: counts are divided by this, so that they are about as large as the other features
COUNT_UNIT = 4
NUM_FEATURES = (CONTEXT + 1) * NUM_SYMBOLS
#: of every text for validation, and as much for test, in one piece each
HELD_OUT = 0.1


class DomainsData(NamedTuple):
    """Places of the texts, each domain in equal shares; the parts are from different pieces of the texts."""

    train: Labelled  #: x (n, 240), the last 4 symbols as one-hot vectors and counts before; y, the next symbol
    validation: Labelled
    test: Labelled
    alphabet: Tensor  #: long (48,), the symbol that stands for each in the ciphered prose
    domain: Remembered  #: the domain of every datapoint


def domains_data(seed: int = 0, num_train: int = 24_000, num_held_out: int = 4_000) -> DomainsData:
    """
    A datapoint is a random place in a random chunk of one of the four domains of :data:`~models.domain_texts.DOMAINS`.

    :param seed: of the alphabet of the ciphered prose, and of the places.
    :param num_train: datapoints of the training part, and
    :param num_held_out: of validation and test part.
    :raises ValueError: if a number is not a positive int.
    """
    check_positive_int("num_train", num_train)
    check_positive_int("num_held_out", num_held_out)
    generator = torch.Generator().manual_seed(seed)
    alphabet = torch.randperm(NUM_SYMBOLS, generator=generator)
    plain = symbol_texts()
    texts = [_split(text) for text in (*plain, alphabet[plain[0]])]
    parts, domains = [], []
    for part, size in enumerate((num_train, num_held_out, num_held_out)):
        domain = torch.arange(size) % len(DOMAINS)
        domain = domain[torch.randperm(size, generator=generator)]
        windows = torch.empty(size, CHUNK + CONTEXT + 1, dtype=torch.long)
        for number, text in enumerate(texts):
            rows = domain == number
            every = text[part].unfold(0, CHUNK + CONTEXT + 1, 1)
            windows[rows] = every[torch.randint(len(every), (int(rows.sum()),), generator=generator)]
        parts.append(_labelled(windows))
        domains.append(domain)
    known = Remembered(torch.cat([part.x for part in parts]), torch.cat(domains))
    return DomainsData(parts[0], parts[1], parts[2], alphabet, known)


def _split(text: Tensor) -> tuple[Tensor, ...]:
    """Training, validation and test part, contiguous."""
    held_out = int(HELD_OUT * len(text))
    return text.split([len(text) - 2 * held_out, held_out, held_out])


def _labelled(windows: Tensor) -> Labelled:
    before, context, y = windows.split([CHUNK, CONTEXT, 1], -1)
    dtype = torch.get_default_dtype()
    counts = torch.zeros(len(windows), NUM_SYMBOLS, dtype=dtype)
    counts.scatter_add_(-1, before, torch.ones_like(before, dtype=dtype))
    return Labelled(
        torch.cat([one_hot(context, NUM_SYMBOLS).flatten(-2).to(dtype), counts / COUNT_UNIT], -1), y.squeeze(-1)
    )


def domains_mixture(
    assignment: Callable[..., AssignmentDistribution],
    num_experts: int = len(DOMAINS),
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
) -> MixtureOfExperts:
    """
    Linear experts, and a router with one hidden layer of 32 units.

    :param batch_shape: independent models, trained side by side in plates of these sizes.
    """
    return MixtureOfExperts(
        router=stacked_network(batch_shape, NUM_FEATURES, num_experts),
        experts=BatchedExperts(num_experts, NUM_FEATURES, None, NUM_SYMBOLS, batch_shape=batch_shape),
        likelihood=categorical,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline={"use_decaying_avg_baseline": True},
    )
