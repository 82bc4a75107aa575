"""The experts as plain loops over datapoints, and random assignments to try them on."""

import torch


def expert(layer, x, e, model=()):
    """Expert e of one model of the layer applied to one datapoint."""
    if layer.hidden is not None:
        x = x @ layer.hidden.weight[(*model, e)]
        if layer.hidden.bias is not None:
            x = x + layer.hidden.bias[(*model, e)]
        x = layer.activation(x)
    x = x @ layer.output.weight[(*model, e)]
    return x if layer.output.bias is None else x + layer.output.bias[(*model, e)]


def loop(layer, x, assignment, mask=None):
    """The layer, one datapoint at a time; leading dimensions by recursion, the last of them `batch_shape`."""

    def one(x, assignment, mask, model):
        rows = []
        for i in range(assignment.shape[0]):
            if assignment[i] < 0 or not mask[i]:
                row = 0 * expert(layer, x[i], 0, model)  # zero, and so are its gradients
            else:
                row = expert(layer, x[i], int(assignment[i]), model)
            rows.append(x[i] + row if layer.residual else row)
        return torch.stack(rows) if rows else x.new_zeros(0, layer.out_features)

    batch = assignment.shape[:-1]
    mask = torch.ones_like(assignment, dtype=torch.bool) if mask is None else mask
    x = x.expand(*batch, *x.shape[-2:])
    models = len(layer.batch_shape)
    elements = [
        one(x[index], assignment[index], mask[index], index[len(batch) - models :])
        for index in (tuple(i.tolist()) for i in torch.ones(batch).nonzero())
    ]
    return torch.stack(elements).reshape(*batch, *elements[0].shape)


def random_assignment(*shape, num_experts, capacity):
    """Independent choices; those beyond the capacity are dropped, and some more at random."""
    assignment = torch.randint(num_experts, shape)
    assignment = torch.where(torch.rand(shape) < 0.1, ~assignment, assignment)
    one_hot = assignment.unsqueeze(-1) == torch.arange(num_experts)
    too_late = (one_hot.cumsum(-2) > capacity) & one_hot
    return torch.where(too_late.any(-1), ~assignment, assignment)
