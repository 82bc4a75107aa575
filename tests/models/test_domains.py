"""Texts of four domains: places of disjoint pieces, an oracle, and a context that each continues in its own way."""

import pytest
import torch

from models.domain_texts import DOMAINS, NUM_SYMBOLS, program_text, symbol_texts, table_text
from models.domains import CHUNK, CONTEXT, COUNT_UNIT, NUM_FEATURES, DomainsData, domains_data, domains_mixture
from prob_moe.distributions import DependentRounding


@pytest.fixture(scope="module")
def data() -> DomainsData:
    return domains_data(seed=1, num_train=8_000, num_held_out=2_000)


def last(x: torch.Tensor) -> torch.Tensor:
    return x[:, (CONTEXT - 1) * NUM_SYMBOLS : CONTEXT * NUM_SYMBOLS].argmax(-1)


def test_features_are_a_context_and_counts(data: DomainsData) -> None:
    x, y = data.train
    assert x.shape == (8_000, NUM_FEATURES)
    assert y.min() >= 0
    assert y.max() < NUM_SYMBOLS
    context, counts = x.split([CONTEXT * NUM_SYMBOLS, NUM_SYMBOLS], -1)
    assert context.sum(-1).eq(CONTEXT).all()
    assert (counts.sum(-1) * COUNT_UNIT).eq(CHUNK).all()
    for part in data[:3]:
        assert data.domain(part.x).bincount().unique().tolist() == [len(part.y) // len(DOMAINS)]


def test_the_truth_of_the_right_domain_is_the_most_likely(data: DomainsData) -> None:
    x, y = data.train
    pairs = torch.full((len(DOMAINS), NUM_SYMBOLS, NUM_SYMBOLS), 0.1)
    pairs.index_put_((data.domain(x), last(x), y), torch.tensor(1.0), accumulate=True)
    log_p = (pairs / pairs.sum(-1, keepdim=True)).log()
    x, y = data.test
    domain = data.domain(x)
    costs = -log_p[:, last(x), y]
    mean_costs = torch.stack([costs[:, domain == true].mean(-1) for true in range(len(DOMAINS))])
    assert mean_costs.argmin(-1).tolist() == list(range(len(DOMAINS)))
    all_together = -(pairs.sum(0) / pairs.sum((0, -1), keepdim=True).squeeze(0)).log()[last(x), y]
    ahead = all_together - costs.gather(0, domain.unsqueeze(0)).squeeze(0)
    assert ahead.mean() > 5 * ahead.std() / len(y) ** 0.5


def test_the_ciphered_prose_is_prose(data: DomainsData) -> None:
    assert data.alphabet.sort().values.equal(torch.arange(NUM_SYMBOLS))
    x, y = data.train
    domain = data.domain(x)
    plain = y[domain == DOMAINS.index("prose")].bincount(minlength=NUM_SYMBOLS) / 2_000
    ciphered = y[domain == DOMAINS.index("ciphered prose")]
    deciphered = data.alphabet.argsort()[ciphered].bincount(minlength=NUM_SYMBOLS) / 2_000
    assert (plain - deciphered).abs().sum() < 0.25
    assert (plain - ciphered.bincount(minlength=NUM_SYMBOLS) / 2_000).abs().sum() > 0.5


def test_parts_are_from_disjoint_pieces_and_a_seed_decides(data: DomainsData) -> None:
    rows = [{*map(tuple, part.x.to(torch.float32).tolist())} for part in data[:3]]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    first, again, other = (domains_data(seed, 100, 40) for seed in (5, 5, 6))
    assert first.train.x.equal(again.train.x)
    assert not first.train.x.equal(other.train.x)
    assert not first.alphabet.equal(other.alphabet)


def test_texts_are_long_and_of_one_kind() -> None:
    assert all(len(text) > 100_000 for text in symbol_texts())
    assert b"def " in program_text()
    assert not {*b"abcdfghijklmnopqrstuvwxyz"} & {*table_text()}


def test_the_mixture_takes_a_stack_of_seeds(data: DomainsData) -> None:
    mixture = domains_mixture(DependentRounding, 8, (2,))
    assert mixture.predict(data.train.x[:40].view(2, 20, -1), num_selected=2).logits.shape == (2, 20, NUM_SYMBOLS)


@pytest.mark.parametrize("name", ["num_train", "num_held_out"])
def test_sizes_are_positive_ints(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive int, but is 0"):
        domains_data(**{name: 0})
