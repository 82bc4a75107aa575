"""What experts on many processes are made of, on one."""

import math

import pytest
import torch
from torch import nn

from prob_moe.distributions import IndependentRouting
from prob_moe.experts import BatchedExperts, StackedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.numerics.transport.sinkhorn import sinkhorn_log_plan
from prob_moe.parallel import Groups, clip_grad_norm_, full_state_dict, load_full_state_dict, sum_gradients
from prob_moe.parallel.exchange import by_process, from_processes
from prob_moe.parallel.experts import take_experts
from prob_moe.parallel.mesh import check_torch, fingerprint


@pytest.mark.parametrize(("k", "processes"), [(1, 1), (4, 2), (5, 2), (5, 4), (7, 3), (8, 8)])
def test_pieces_are_put_together_again(k, processes):
    rows = torch.randn(k, 3, 2, requires_grad=True)
    pieces = by_process(rows, processes)
    assert pieces.shape == (processes, -(-k // processes), 3, 2)
    assert torch.equal(from_processes(pieces, k), rows)
    assert pieces.sum() == rows.sum() or torch.isclose(pieces.sum(), rows.sum())
    (from_processes(pieces, k) * torch.arange(k).view(k, 1, 1)).sum().backward()
    assert torch.equal(rows.grad, torch.arange(k).view(k, 1, 1).expand(k, 3, 2).float())


@pytest.mark.parametrize(("n", "groups"), [(22, 4), (3, 4), (0, 2), (8, 8), (5, 1)])
def test_groups_hold_every_datapoint_once(n, groups):
    cut = Groups(groups)
    x = torch.arange(1.0, n + 1).unsqueeze(-1)
    part, labels, mask = cut.cut(x, torch.arange(n))
    assert part.shape == (groups, max(1, math.ceil(n / groups)), 1)
    assert mask.sum() == n
    assert mask.sum(-1).max() - mask.sum(-1).min() <= 1
    assert bool((part[~mask] == 0).all())
    assert torch.equal(labels[mask], torch.arange(n))
    assert torch.equal(cut.join(part, n), x)


@pytest.mark.parametrize("num_groups", [0, -2, 1.5, True])
def test_groups_are_a_positive_int(num_groups):
    with pytest.raises(ValueError, match=f"num_groups must be a positive int, but is {num_groups}"):
        Groups(num_groups)


def test_cut_wants_one_number_of_datapoints():
    with pytest.raises(ValueError, match=r"one number of datapoints, got \[3, 4\]"):
        Groups(2).cut(torch.zeros(3), torch.zeros(4))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_clipping_on_one_process_is_torchs(norm_type):
    ours, theirs = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    for network in (ours, theirs):
        network(x).square().sum().backward()
    sum_gradients(ours)
    norm = clip_grad_norm_(ours, 0.7, norm_type)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs.parameters(), 0.7, norm_type))
    for own, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(own.grad, other.grad)


def test_clipping_without_gradients_and_with_bad_arguments():
    assert clip_grad_norm_(nn.Linear(2, 2), 1.0) == 0
    for arguments in ((0.0,), (math.nan,), (1.0, -1.0)):
        with pytest.raises(ValueError, match="must be positive, got"):
            clip_grad_norm_(nn.Linear(2, 2), *arguments)


@pytest.mark.parametrize("form", ["batched", "stacked"])
def test_experts_are_taken_with_their_parameters(form):
    if form == "batched":
        experts = BatchedExperts(5, 3, 4, 2)
        experts.output.bias.requires_grad_(False)
    else:
        experts = StackedExperts([nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(5)])
    own = take_experts(experts, 1, 3)
    assignment = torch.tensor([0, 1, 2, 2, 0])
    x = torch.randn(5, 3)
    torch.testing.assert_close(own(x, assignment), experts(x, assignment + 1))
    assert [p.requires_grad for p in own.parameters()] == [p.requires_grad for p in experts.parameters()]
    assert not {p.data_ptr() for p in own.parameters()} & {p.data_ptr() for p in experts.parameters()}


def test_states_and_fingerprints_of_a_plain_network():
    layer, other = (ExpertLayer(None, BatchedExperts(4, 3, None, 2), IndependentRouting) for _ in range(2))
    assert fingerprint(layer) != fingerprint(other)
    load_full_state_dict(other, full_state_dict(layer))
    assert fingerprint(layer) == fingerprint(other)
    fingerprint(nn.LazyLinear(3))


def test_the_lowest_torch_is_checked_by_name(monkeypatch):
    check_torch()
    monkeypatch.delattr("torch.distributed.all_to_all_single")
    with pytest.raises(ImportError, match=r"need torch >= 2.4 .* has no torch.distributed.all_to_all_single"):
        check_torch()


def test_a_sinkhorn_plan_is_the_same_alone():
    """However long the other batch elements take."""
    logits = torch.randn(3, 9, 4, dtype=torch.float64) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1)
    together = sinkhorn_log_plan(logits)
    for element, alone in zip(together, logits):
        assert torch.equal(sinkhorn_log_plan(alone), element)
