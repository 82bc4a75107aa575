"""The expert layer with every distribution and every rule, in plain torch and in Pyro."""

import copy
import io
import warnings
from functools import partial

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.nn import PyroModule
from pyro.ops.provenance import get_provenance
from torch import nn

from prob_moe.distributions import CapacitySkip, IndependentRouting
from prob_moe.estimators import DecayingAverage, LeaveOneOut, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.layer.recording import record_routing
from prob_moe.layer.replaying import replay_routing
from prob_moe.rules import SMEAR, BASELayer, HashRouting, LossFreeBias, RandomRouting, RoutingRule, SoftMoE, Switch
from tests.layer.cases import DISTRIBUTIONS, RULES, D, K, datapoints, experts_of, layer_of, options_for

every_routing = pytest.mark.parametrize(
    "assignment", [*DISTRIBUTIONS.values(), *RULES.values()], ids=[*DISTRIBUTIONS, *RULES]
)
every_distribution = pytest.mark.parametrize("assignment", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
#: what a datapoint gets depends on its companions, in serving too; of random routing on its place among them
MIXES_DATAPOINTS = ("expert choice", "Soft MoE", "SMEAR, shared", "sparse transport", "random")


@every_routing
def test_a_training_step_in_plain_torch(assignment):
    layer, x = layer_of(assignment), datapoints(2, 7)
    with record_routing() as routed:
        out = layer(x, **options_for(assignment, x))
    assert out.shape == (2, 7, D)
    losses = out.square().sum(-1)
    loss = routed.surrogate(losses).mean() + routed.loss.mean()
    assert routed.loss.shape == (2,)
    loss.backward()
    layer.update()
    expects_gradient = not isinstance(assignment, HashRouting | RandomRouting)
    for name, parameter in layer.named_parameters():
        if expects_gradient or "router" not in name:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


@every_routing
def test_serving_knows_no_companions_and_drops_nobody(assignment, request):
    layer = layer_of(assignment).eval()
    if layer.rule is not None and layer.rule.capacity_factor is None:
        layer.rule.capacity = 1  # in training
    x = datapoints(2, 7)
    out = layer(x, **options_for(assignment, x))
    assert torch.equal(out, layer(x, **options_for(assignment, x)))
    if request.node.callspec.id in MIXES_DATAPOINTS:
        return
    for index in range(7):
        alone = x[1, index : index + 1]
        torch.testing.assert_close(out[1, index : index + 1], layer(alone, **options_for(assignment, alone)))


@every_distribution
def test_serving_takes_the_favourite(assignment):
    layer, x = layer_of(assignment).eval(), datapoints(9)
    with record_routing() as routed:
        out = layer(x)
    favourites = layer.router(x).argmax(-1)
    assert torch.equal(routed.record().layers["experts"].value, favourites)
    expected = torch.stack([layer.experts.dense(x)[i, e] for i, e in enumerate(favourites)])
    torch.testing.assert_close(out, expected)


@every_routing
@pytest.mark.parametrize("training", [True, False])
def test_whatever_stands_in_padding_changes_nothing(assignment, training):
    layer = layer_of(assignment).train(training)
    mask = torch.tensor([[True] * 7, [True, False] * 3 + [False]])
    x = datapoints(2, 7)

    def results(filling):
        torch.manual_seed(2)
        filled = x.masked_fill(~mask.unsqueeze(-1), filling)
        with record_routing() as routed:
            out = layer(filled, mask, **options_for(assignment, x))
        loss = routed.surrogate(out.square().sum(-1)).sum() + routed.loss.sum()
        gradients = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True)
        return [out, *(g for g in gradients if g is not None)]

    expected = results(0.0)
    assert bool((expected[0][~mask] == 0).all())
    for filling in (torch.nan, 1e300):
        for ours, theirs in zip(results(filling), expected, strict=True):
            assert torch.equal(ours, theirs)


# In Pyro -------------------------------------------------------------------------------------------------------------


class Model(PyroModule):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, y):
        with pyro.plate("batch", len(x), dim=-2):
            h = self.second(self.first(x, **options_for(self.first.rule, x)), **options_for(self.second.rule, x))
            with pyro.plate("data", x.shape[-2], dim=-1):
                pyro.sample("y", Normal(h.sum(-1), 1.0), obs=y)


@every_routing
@pytest.mark.parametrize("particles", [1, 2])
def test_two_layers_in_pyro(assignment, particles):
    model = Model(layer_of(assignment), layer_of(assignment))
    x, y = datapoints(2, 7), torch.randn(2, 7, dtype=torch.float64)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    drawn = [name for name, site in trace.nodes.items() if name in ("first", "second") and site["type"] == "sample"]
    assert drawn == ([] if isinstance(assignment, RoutingRule) else ["first", "second"])
    if isinstance(assignment, RoutingRule):
        loss = -trace.nodes["first_loss"]["fn"].log_factor
        assert loss.shape == (2, 1)
    elbo = TraceRouting_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=2)
    loss = elbo.differentiable_loss(model, None, x, y)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None for n, p in model.named_parameters() if "experts" in n)


@pytest.mark.parametrize("second", [CapacitySkip, BASELayer, SoftMoE], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("stacked", [True, False])
def test_experts_of_any_form_keep_the_provenance_of_what_they_process(second, stacked):
    """By it the balanced objective finds the costs of a draw: the first layer's, through the second."""
    experts = [nn.Linear(D, D).double() for _ in range(K)] if stacked else ForAll(experts_of())
    router = nn.Linear(D, K, dtype=torch.float64)
    capacity = {} if second is SoftMoE else {"capacity_factor": 1.0}
    first, last = layer_of(CapacitySkip), ExpertLayer(router, experts, second, **capacity)
    with TrackNonReparam():
        trace = pyro.poutine.trace(lambda x: last(first(x))).get_trace(datapoints(6))
    sources = get_provenance(trace.nodes["_RETURN"]["value"])
    assert sources == ({"experts", "experts:2"} if second is CapacitySkip else {"experts"})


# Names ---------------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self, name=None):
        super().__init__()
        self.inner = nn.Sequential(layer_of(CapacitySkip, name=name))

    def forward(self, x):
        return self.inner(self.inner(x))


def test_names_are_paths_with_a_number_for_repeated_calls():
    net, x = nn.Sequential(Twice(), layer_of(CapacitySkip)), datapoints(5)
    with record_routing() as routed:
        net(x)
    names = ["0.inner.0", "0.inner.0:2", "1"]
    assert list(routed.record().layers) == names
    assert [name for name in pyro.poutine.trace(net).get_trace(x).nodes if name[0] != "_"] == names
    # Deeper in another network, elsewhere.
    with record_routing() as routed:
        nn.Sequential(nn.Identity(), net)(x)
    assert list(routed.record().layers) == [f"1.{name}" for name in names]


def test_explicit_names_are_unique():
    net, x = Twice(name="moe"), datapoints(5)
    with pytest.raises(ValueError, match="name='moe' is used twice"), record_routing():
        net(x)
    with pytest.raises(ValueError, match="name='moe' is used twice"):
        pyro.poutine.trace(net).get_trace(x)


# What moves, what warns, what is refused -----------------------------------------------------------------------------


def test_training_without_a_recorder_warns_once():
    layer, x = layer_of(CapacitySkip), datapoints(5)
    with pytest.warns(UserWarning, match=r"record_routing\(\)"):
        layer(x)
    with warnings.catch_warnings(action="error"):
        layer(x)
        with torch.no_grad():
            layer_of(CapacitySkip)(x)
        layer_of(Switch())(x)
        layer_of(CapacitySkip).eval()(x)


def test_update_moves_the_bias_and_forward_does_not():
    layer, x = layer_of(LossFreeBias(K)), datapoints(8)
    layer(x)
    assert not bool(layer.rule.bias.any())
    layer.update()
    assert bool(layer.rule.bias.any())


@pytest.mark.parametrize("assignment", [CapacitySkip, LossFreeBias(K), Switch()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.Adam, foreach=True)])
def test_a_second_optimiser_step_without_an_update_warns_once(assignment, optimizer):
    moves = not isinstance(assignment, Switch)
    options = {"baseline": DecayingAverage()} if assignment is CapacitySkip else {}
    layer, x = layer_of(assignment, **options), datapoints(8)
    optimizer = optimizer(layer.parameters(), lr=1e-3)

    def backward():
        with record_routing() as routed:
            losses = layer(x).square().sum(-1)
        routed.surrogate(losses).mean().backward()

    with warnings.catch_warnings(action="error"):
        for _ in range(2):
            backward()
            backward()  # a microbatch
            optimizer.step()
            layer.update()
        backward()
        optimizer.step()
    if moves:
        with pytest.warns(UserWarning, match=r"second optimiser step without layer.update\(\)"):
            backward()
    with warnings.catch_warnings(action="error"):
        optimizer.step()
        backward()


def test_a_resumed_loop_goes_on_bit_for_bit():
    """What baselines and biases remember is in the state_dict."""
    x = datapoints(2, 8)

    def network():
        return nn.Sequential(layer_of(CapacitySkip, baseline=DecayingAverage()), layer_of(LossFreeBias(K, rate=0.1)))

    def train(net, steps):
        for step in steps:
            torch.manual_seed(step)
            with record_routing() as routed:
                out = net(x)
            gradients = torch.autograd.grad(routed.surrogate(out.square().sum(-1)).sum(), list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter -= 1e-3 * gradient
            for layer in net:
                layer.update()
        return copy.deepcopy(net.state_dict())

    whole = network()
    halfway = train(whole, range(2))
    file = io.BytesIO()
    torch.save(halfway, file)
    file.seek(0)
    resumed = network()
    resumed.load_state_dict(torch.load(file))
    ours, expected = train(resumed, range(2, 4)), train(whole, range(2, 4))
    assert ours.keys() == expected.keys()
    assert "0.baseline_state" in ours
    for name, value in expected.items():
        parts = value if isinstance(value, dict) else {"": value}
        mine = ours[name] if isinstance(value, dict) else {"": ours[name]}
        assert all(torch.equal(mine[part], parts[part]) for part in parts), name
    fresh = network().state_dict()
    assert "0.baseline_state" not in fresh
    whole.load_state_dict(fresh)
    assert not whole[0].baseline.state_dict()


@pytest.mark.parametrize("slots", ["load", 9])
def test_slots_without_a_limit(slots):
    x = datapoints(9)
    for assignment in (IndependentRouting, Switch()):
        layer = layer_of(assignment, slots=slots)
        with record_routing() as routed:
            out = layer(x)
        value = routed.record().layers["experts"].value.reshape(-1)
        plain = layer.experts(x, value, capacity=9)
        gate = 1 if assignment is IndependentRouting else layer.router(x).softmax(-1).amax(-1, keepdim=True)
        torch.testing.assert_close(out, gate * plain)
    with pytest.raises(ValueError, match="more than capacity=1"), record_routing():
        layer_of(IndependentRouting, slots=1)(x)


def test_rules_take_the_layers_capacity():
    assert layer_of(Switch).rule.capacity_factor == 1.0
    layer = ExpertLayer(None, experts_of(), partial(Switch, load_balancing=0.1), capacity=2)
    assert (layer.rule.capacity, layer.rule.load_balancing) == (2, 0.1)
    x = datapoints(9)
    with record_routing() as routed:
        layer(x)
    value = routed.record().layers["experts"].value
    assert all(int((value == e).sum()) <= 2 for e in range(K))


def test_auxiliary_losses_reach_both_worlds():
    layer, x = layer_of(CapacitySkip, load_balancing=0.5), datapoints(2, 6)
    with record_routing() as routed:
        layer(x)
    with pyro.plate("batch", 2, dim=-2):
        trace = pyro.poutine.trace(layer).get_trace(x)
    torch.testing.assert_close(trace.nodes["experts_loss"]["fn"].log_factor.squeeze(-1), -6 * routed.loss)


MODULES = [nn.Linear(D, D) for _ in range(K)]
BAD = [
    (dict(capacity=2, capacity_factor=1.0), "capacity or capacity_factor, not both"),
    (dict(slots=0), "slots must be a positive int"),
    (dict(assignment=Switch(), capacity=2), "Switch brings its own"),
    (dict(assignment=SoftMoE, capacity=2), "SoftMoE cannot be made with {'capacity': 2}"),
    (dict(assignment=3), "assignment must be a distribution"),
    (dict(assignment=SMEAR, experts=MODULES), "SMEAR merges parameters: experts must be a BatchedExperts, got list"),
    (dict(assignment=Switch, baseline=nn.Identity()), "Switch draws from no law"),
    (dict(experts=[nn.Linear(D, D), nn.Linear(D, 2)]), "of one form to be stacked, but expert 1 is Linear"),
    (dict(experts=[]), "must be modules, one or more"),
    (dict(experts=nn.Flatten()), "Flatten do not say how many they are"),
    (dict(experts=3), "experts must be a BatchedExperts, a list of modules or a module, got 3"),
    (dict(baseline=3), "baseline must be"),
    (dict(load_balancing=-1.0), "load_balancing must be a weight"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    options = {"experts": experts_of(), "assignment": CapacitySkip} | options
    with pytest.raises(ValueError, match=message):
        ExpertLayer(None, options.pop("experts"), options.pop("assignment"), **options)


def test_bad_calls():
    x = datapoints(5)
    for assignment in (CapacitySkip, BASELayer):
        layer = ExpertLayer(nn.Linear(D, K + 1, dtype=torch.float64), experts_of(), assignment, capacity_factor=1.0)
        with pytest.raises(ValueError, match="router must return"):
            layer(x)
    layer = layer_of(CapacitySkip)
    with pytest.raises(ValueError, match="one of capacity and capacity_factor is needed"):
        ExpertLayer(None, experts_of(), CapacitySkip)(x)
    with pytest.raises(ValueError, match="'identity'"):
        layer(x, identity=x)
    with record_routing() as routed:
        pass
    with pytest.raises(ValueError, match="no expert layer was run"):
        routed.surrogate(torch.zeros(5))
    with record_routing() as routed:
        layer(x)
        with pytest.raises(ValueError, match="for plain torch; in Pyro"):
            pyro.poutine.trace(layer).get_trace(x)
    for losses, objective in ((torch.zeros(()), "router"), (torch.zeros(6), "router"), (torch.zeros(5), "balanced")):
        with pytest.raises(ValueError, match="loss must have one entry for each"):
            routed.surrogate(losses, objective=objective)
    with pytest.raises(ValueError, match="objective must be"):
        routed.surrogate(torch.zeros(5), objective="both")
    with pytest.raises(ValueError, match="wants the last layer that draws to have num_selected >= 2"):
        routed.surrogate(torch.zeros(5), objective="mixture")
    for baseline, message in (
        (nn.Linear(D, 1, dtype=torch.float64), r"baseline has shape \(5, 1\) but must broadcast"),
        (LeaveOneOut(), "compares particles, and here is one"),
        ({"use_decaying_avg_baseline": True}, "a dict of options is Pyro's"),
    ):
        with record_routing() as routed:
            layer_of(CapacitySkip, baseline=baseline)(x)
        with pytest.raises(ValueError, match=f"layer 'experts': .*{message}"):
            routed.surrogate(torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("assignment", [CapacitySkip, BASELayer, SoftMoE], ids=lambda kind: kind.__name__)
def test_modules_of_one_form_are_batched_experts(assignment):
    """Stacked modules, and one module for all, put out what the same parameters in a BatchedExperts do."""
    batched, x = experts_of(), datapoints(2, 6)
    modules = []
    for e in range(K):
        module = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, D)).double()
        for linear, source in ((module[0], batched.hidden), (module[2], batched.output)):
            linear.weight.data.copy_(source.weight[e].T)
            linear.bias.data.copy_(source.bias[e])
        modules.append(module)
    router = nn.Linear(D, K, dtype=torch.float64)
    outs = []
    for experts in (batched, modules, nn.ModuleList(modules), ForAll(batched)):
        torch.manual_seed(0)
        capacity = {} if assignment is SoftMoE else {"capacity_factor": 1.0}
        layer = ExpertLayer(router, experts, assignment, **capacity)
        layer = copy.deepcopy(layer)
        layer.load_state_dict(layer.state_dict())
        with record_routing() as routed:
            out = layer(x)
        outs.append(out)
        loss = routed.surrogate(out.square().sum(-1)).sum()
        assert all(p.grad is None for p in layer.parameters())
        loss.backward()
        assert all(p.grad is not None for p in layer.experts.parameters())
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


class ForAll(nn.Module):
    num_experts = K

    def __init__(self, batched: BatchedExperts):
        super().__init__()
        self.batched = batched

    def forward(self, inputs):
        assert inputs.dim() == 3
        return self.batched.forward_dispatched(inputs)


def test_a_linear_router_of_modules_learns_its_width_from_the_data():
    layer = ExpertLayer(None, MODULES, CapacitySkip, capacity_factor=1.0)
    with record_routing():
        assert layer(torch.randn(6, D)).shape == (6, D)
    assert layer.router.weight.shape == (K, D)


def test_contexts_end_with_an_error():
    layer, x = layer_of(CapacitySkip), datapoints(5)
    with torch.no_grad(), record_routing() as first:
        layer(x)
    with pytest.raises(RuntimeError, match="within"), replay_routing(first.record()), record_routing():
        raise RuntimeError("within")
    with torch.no_grad():
        layer(x)
    assert len(first.visits) == 1
