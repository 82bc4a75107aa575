import pytest
import torch
from pyro.ops.provenance import get_provenance, track_provenance

from prob_moe.experts import BatchedExperts, sorting
from tests.experts.oracle import expert, loop, random_assignment

K, D, OUT = 3, 4, 4


@pytest.fixture(params=["slots", "slots for the largest load", "sorted rows"])
def room(request, monkeypatch):
    """From a capacity to the argument that makes the layer go one of its ways."""
    calls_cost = {"slots for the largest load": 2**62, "sorted rows": -1}.get(request.param)
    monkeypatch.setattr(sorting, "MULTIPLICATIONS_PER_EXPERT", calls_cost)
    return lambda capacity: capacity if calls_cost is None else None


def _gradients(layer, x, output, weights):
    return torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()])


def _assert_equals_loop(layer, x, assignment, capacity, mask=None):
    """Values and all gradients, up to rounding."""
    output = layer(x, assignment, capacity=capacity, mask=mask)
    expected = loop(layer, x, assignment, mask)
    assert output.dtype == x.dtype
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients, expected = (_gradients(layer, x, y, weights) for y in (output, expected))
    for gradient, exact in zip(gradients, expected):
        torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-12)


def _data(*batch, n=10, capacity=4):
    x = torch.randn(*batch, n, D, dtype=torch.float64, requires_grad=True)
    return x, random_assignment(*batch, n, num_experts=K, capacity=capacity)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_features": None},
        {"bias": False},
        {"residual": True},
        {"activation": torch.nn.functional.gelu},
        {"hidden_features": None, "bias": False, "residual": True},
    ],
    ids=str,
)
def test_equals_loop(batch, masked, options, room):
    layer = BatchedExperts(**{**_sizes(), **options}, dtype=torch.float64)
    x, assignment = _data(*batch)
    mask = torch.rand(assignment.shape) < 0.7 if masked else None
    _assert_equals_loop(layer, x, assignment, room(4), mask)


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("batch", [(), (3,), (3, 1)])
@pytest.mark.parametrize("models", [(2,), (2, 2)])
def test_independent_sets_of_experts_equal_loop(hidden, batch, models, room):
    layer = BatchedExperts(K, D, hidden, OUT, batch_shape=models, dtype=torch.float64)
    x, assignment = _data(*batch, *models)
    _assert_equals_loop(layer, x, assignment, room(4))


def test_data_are_shared_by_independent_sets_of_experts(room):
    layer = BatchedExperts(K, D, None, OUT, batch_shape=(5,), dtype=torch.float64)
    x, _ = _data()
    _assert_equals_loop(layer, x, random_assignment(5, 10, num_experts=K, capacity=4), room(4))


EDGES = {
    "fewer datapoints than experts": (torch.tensor([2]), None),
    "an expert without a datapoint": (torch.tensor([0, 0, 2, 2]), None),
    "all dropped": (torch.tensor([~0, ~1, ~2]), None),
    "all masked": (torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.bool)),
    "no datapoint": (torch.zeros(0, dtype=torch.long), None),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_edges_equal_loop(edge, batch, room):
    assignment, mask = (None if part is None else part.expand(*batch, -1) for part in EDGES[edge])
    layer = BatchedExperts(**_sizes(), dtype=torch.float64)
    x = torch.randn(*assignment.shape, D, dtype=torch.float64, requires_grad=True)
    if assignment.numel():
        _assert_equals_loop(layer, x, assignment, room(2), mask)
    else:
        output = layer(x, assignment, capacity=room(2))
        assert output.shape == (*batch, 0, OUT)
        for gradient in _gradients(layer, x, output, 1.0):
            assert (gradient == 0).all()


def test_dropped_and_masked_datapoints_get_no_gradient(room):
    layer = BatchedExperts(**_sizes())
    x = torch.randn(4, D, requires_grad=True)
    mask = torch.tensor([True, True, True, False])
    layer(x, torch.tensor([0, ~0, 1, 2]), capacity=room(2), mask=mask).sum().backward()
    assert (x.grad != 0).any(-1).tolist() == [True, False, True, False]


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("models", [(), (2,)])
def test_dense_equals_loop(hidden, models):
    layer = BatchedExperts(K, D, hidden, OUT, batch_shape=models, residual=True, dtype=torch.float64)
    x, _ = _data(3, *models, n=5)
    dense = layer.dense(x)
    assert dense.shape == (3, *models, 5, K, OUT)
    for index in torch.ones(dense.shape[:-1]).nonzero().tolist():
        *data, e = index
        row = x[tuple(data)]
        exact = row + expert(layer, row, e, tuple(data[1:-1]))
        torch.testing.assert_close(dense[tuple(index)], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_gradcheck(activation, room):
    layer = BatchedExperts(2, 2, 3, 2, activation=activation, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assignment = torch.tensor([1, 0, ~0, 1, 0])
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *parameters):
        replaced = dict(zip(names, parameters))
        return torch.func.functional_call(layer, replaced, (x, assignment), {"capacity": room(3)})

    assert torch.autograd.gradcheck(output, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(output, (x, *layer.parameters()))


def test_function_transforms_equal_loop(room):
    layer = BatchedExperts(**_sizes(), dtype=torch.float64)
    x, assignment = _data()
    xs = torch.stack([x.detach(), torch.randn_like(x)])

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x, assignment), {"capacity": room(4)}).square().sum()

    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    gradients = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for i in range(2):
        exact = torch.autograd.grad(loop(layer, xs[i], assignment).square().sum(), layer.parameters())
        for gradient, truth in zip(gradients.values(), exact):
            torch.testing.assert_close(gradient[i], truth, rtol=1e-10, atol=1e-12)


def test_provenance_and_gradients_survive_a_tracked_assignment(room):
    layer = BatchedExperts(**_sizes(), dtype=torch.float64)
    x, assignment = _data()
    tracked = layer(x, track_provenance(assignment, frozenset({"z"})), capacity=room(4))
    assert get_provenance(tracked) == {"z"}
    gradients = _gradients(layer, x, tracked, 1.0)
    for gradient, exact in zip(gradients, _gradients(layer, x, loop(layer, x, assignment), 1.0)):
        torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-12)


def test_gradients_that_are_differentiated_again_are_not_overwritten(room):
    layer = BatchedExperts(**_sizes(), dtype=torch.float64)
    x, assignment = _data()
    output = layer(x, assignment, capacity=room(4))
    for create_graph in (True, False, False):
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=create_graph, retain_graph=True)
        (exact,) = torch.autograd.grad(loop(layer, x, assignment).sum(), x)
        torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-12)


def test_deterministic(room):
    layer = BatchedExperts(8, 16, 32, 16)
    x = torch.randn(200, 16, requires_grad=True)
    assignment = random_assignment(200, num_experts=8, capacity=30)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [layer(x, assignment, capacity=room(30)) for _ in range(2)]
        gradients = [_gradients(layer, x, run, 1.0) for run in runs]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*runs)
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def test_parameters_are_drawn_as_those_of_linear_layers():
    layer = BatchedExperts(10, 100, 400, 1)
    for part, features in ((layer.hidden, 100), (layer.output, 400)):
        bound = features**-0.5
        assert part.weight.abs().max() <= bound
        uniform = part.weight.detach().flatten() / bound
        # The variance of U(-1, 1) is 1/3, that of its square is 4/45.
        z = (uniform.square().mean() - 1 / 3) / (4 / 45 / uniform.numel()) ** 0.5
        assert abs(z) < 5


@pytest.mark.parametrize("name", ["num_experts", "in_features", "hidden_features", "out_features"])
def test_wrong_size_is_named(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive int, but is 0"):
        BatchedExperts(**{**_sizes(), name: 0})


def test_wrong_argument_is_named():
    with pytest.raises(ValueError, match=r"residual=True .* in_features=4 differs from out_features=5"):
        BatchedExperts(**{**_sizes(), "out_features": 5}, residual=True)
    layer = BatchedExperts(**_sizes())
    assignment = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"x must have shape \(3, 4\).*has shape \(3, 5\)"):
        layer(torch.zeros(3, 5), assignment, capacity=3)
    with pytest.raises(ValueError, match="more than capacity=2"):
        layer(torch.zeros(3, 4), assignment, capacity=2)
    for unknown in (3, ~3):
        with pytest.raises(ValueError, match=r"experts 0..2, or ~e where e was dropped, but names expert 3"):
            layer(torch.zeros(3, 4), torch.full((3,), unknown))
    with pytest.raises(ValueError, match=r"x must have shape \(\*batch, n, 4\)"):
        layer.dense(torch.zeros(3, 5))
    stacked = BatchedExperts(**_sizes(), batch_shape=(2,))
    with pytest.raises(ValueError, match=r"assignment must have shape \(\*batch, 2, n\)"):
        stacked(torch.zeros(3, 4), assignment, capacity=3)


def _sizes():
    return {"num_experts": K, "in_features": D, "hidden_features": 6, "out_features": OUT}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("options", [{}, {"residual": True}], ids=str)
def test_several_experts_per_datapoint_are_as_many_entries(batch, options, room):
    layer = BatchedExperts(**{**_sizes(), **options}, dtype=torch.float64)
    x, entries = (
        torch.randn(*batch, 5, D, dtype=torch.float64),
        random_assignment(*batch, 10, num_experts=K, capacity=4),
    )
    mask = torch.rand(*batch, 5) < 0.7
    out = layer(x, entries.unflatten(-1, (2, 5)), capacity=room(4), num_selected=2, mask=mask)
    expected = layer(torch.cat([x, x], -2), entries, capacity=4, mask=torch.cat([mask, mask], -1))
    torch.testing.assert_close(out, expected.unflatten(-2, (2, 5)))
    for bad, message in (
        (dict(assignment=entries.unflatten(-1, (5, 2)), num_selected=2), "num_selected = m = 2"),
        (dict(assignment=entries.unflatten(-1, (2, 5)), num_selected=2, mask=mask[..., :4]), "one entry per datapoint"),
        (dict(assignment=entries, num_selected=0), "num_selected must be a positive int"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, bad.pop("assignment"), capacity=room(4), **bad)
