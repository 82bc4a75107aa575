"""Routed layers as plain loops over batch elements and datapoints."""

import torch

from prob_moe.experts import BatchedExperts
from tests.experts.oracle import expert

K, D = 3, 4


def make_experts(models=(), hidden=5, out=D, **options):
    return BatchedExperts(K, D, hidden, out, activation=torch.tanh, batch_shape=models, dtype=torch.float64, **options)


def expert_output(experts, x, e, model=()):
    """Expert e on one datapoint, its residual connection included."""
    out = expert(experts, x, e, model)
    return x + out if experts.residual else out


def mixture_loop(experts, x, weights, carry=None, model=()):
    """:math:`y_i = Σ_j w_ij f_j(x_i) + r_i x_i` of one batch element, x (n, d), weights (n, k)."""
    rows = []
    for i in range(x.shape[0]):
        row = sum(weights[i, e] * expert_output(experts, x[i], e, model) for e in range(weights.shape[1]))
        rows.append(row if carry is None else row + carry[i] * x[i])
    return torch.stack(rows)


def each_element(one, batch, models, *tensors):
    """``one(*elements, model)`` for every batch element, stacked; the last dimensions of the batch are the models."""
    outputs = []
    for index in torch.ones(batch).nonzero().tolist():
        index = tuple(index)
        model = index[len(batch) - len(models) :]
        outputs.append(one(*(None if tensor is None else tensor[index] for tensor in tensors), model))
    return torch.stack(outputs).reshape(*batch, *outputs[0].shape)


def assert_equals_loop(router, one, *, batch=(), models=(), n=11, columns=K, masked=False, **options):
    """
    Outputs and the gradients of logits, datapoints and parameters against a loop.

    :param one: (experts, x (n, d), logits (n, k), mask (n,), model) -> outputs of one batch element.
    """
    batch = (*batch, *models)
    experts = make_experts(models, **options)
    x = torch.randn(*batch, n, D, dtype=torch.float64, requires_grad=True)
    logits = (2 * torch.randn(*batch, n, columns, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(*batch, n) < 0.7 if masked else torch.ones(*batch, n, dtype=torch.bool)
    routing = router(logits, mask=mask if masked else None)
    assert routing.loss.shape == torch.Size(batch)
    output = routing.output(experts, x)
    expected = each_element(lambda *args: one(experts, *args), batch, models, x, logits, mask)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)
    probe = torch.randn_like(expected)
    inputs = [logits, x, *experts.parameters()]
    for ours, exact in zip(
        torch.autograd.grad((output * probe).sum(), inputs, allow_unused=True),
        torch.autograd.grad((expected * probe).sum(), inputs, allow_unused=True),
    ):
        assert (ours is None) == (exact is None)
        if exact is not None:
            torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-10)
