"""Auxiliary losses: their values at known points, and where their gradients flow."""

import torch

from prob_moe.rules import load_balancing_loss, z_loss


def test_load_balancing_is_one_at_balance_and_k_at_collapse():
    balanced = torch.eye(4, dtype=torch.float64).repeat(5, 1) * 50
    torch.testing.assert_close(load_balancing_loss(balanced, balanced.argmax(-1)), torch.tensor(1.0).double())
    one = torch.randn(1, 4, dtype=torch.float64)
    torch.testing.assert_close(load_balancing_loss(one, one.argmax(-1)), 4 * one.softmax(-1).max())
    collapsed = balanced[:1].expand(20, 4)
    torch.testing.assert_close(load_balancing_loss(collapsed, collapsed.argmax(-1)), torch.tensor(4.0).double())


def test_load_balancing_gradient_is_that_of_the_mean_probabilities():
    logits = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    choices = torch.randint(3, (10,))
    shares = torch.stack([(choices == e).double().mean() for e in range(3)])
    (ours,) = torch.autograd.grad(load_balancing_loss(logits, choices), logits)
    p = logits.detach().softmax(-1)
    # d/ds_i of 3 Σ_e F_e Σ_i p_ie / 10
    expected = 0.3 * p * (shares - (p * shares).sum(-1, keepdim=True))
    torch.testing.assert_close(ours, expected)


def test_load_balancing_broadcasts_over_samples_of_the_choices():
    logits, choices = torch.randn(2, 10, 3, dtype=torch.float64), torch.randint(3, (5, 2, 10))
    mask = torch.rand(2, 10) < 0.7
    together = load_balancing_loss(logits, choices, mask)
    assert together.shape == (5, 2)
    torch.testing.assert_close(together[3, 1], load_balancing_loss(logits[1][mask[1]], choices[3, 1][mask[1]]))


def test_choices_that_are_not_meant_are_no_load():
    logits = torch.zeros(4, 2, dtype=torch.float64)
    choices, counted = torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, True])
    # Half of the choices, of k = 2 experts with probability 1/2.
    torch.testing.assert_close(load_balancing_loss(logits, choices, counted=counted), torch.tensor(0.5).double())


def test_load_balancing_counts_beyond_what_bfloat16_can():
    logits = torch.zeros(1001, 2, dtype=torch.bfloat16)
    choices = (torch.arange(1001) < 300).long()
    loss = load_balancing_loss(logits, choices)
    assert loss.dtype == torch.bfloat16
    assert abs(float(loss) - 1) < 0.005


def test_z_loss_pulls_the_partition_function_to_one():
    logits = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(10) < 0.6
    (ours,) = torch.autograd.grad(z_loss(logits, mask), logits)
    logits = logits.detach()
    expected = 2 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1) / mask.sum()
    torch.testing.assert_close(ours, expected * mask.unsqueeze(-1))
    normalised = logits.log_softmax(-1)
    assert float(z_loss(normalised)) < 1e-28


def test_losses_of_padding_alone_are_zero():
    mask = torch.zeros(4, dtype=torch.bool)
    assert load_balancing_loss(torch.randn(4, 3), torch.zeros(4, dtype=torch.long), mask) == 0
    assert z_loss(torch.randn(4, 3), mask) == 0
