"""How the router objective lives in a Pyro program: guides, layers, plates, SVI, and what it refuses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.distributions.support import router_choices
from prob_moe.estimators import TraceRouting_ELBO
from prob_moe.estimators.sites import per_datapoint
from tests.estimators.replicas import problem, standard_errors_off

REPLICAS = 4000
PROCEDURES = [CapacitySkip, GumbelMatching]


def pick(table: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    choices = router_choices(z).unsqueeze(-1)
    return table.expand(*choices.shape[:-1], table.shape[-1]).gather(-1, choices).squeeze(-1)


def replicated(logits: torch.Tensor) -> torch.Tensor:
    return logits.expand(REPLICAS, 1, *logits.shape).clone().requires_grad_()


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_a_guide_may_propose_from_another_router(procedure: type) -> None:
    """ELBO = sum_i E_q[f_i + log p_i - log q_i], with gradients for both routers."""
    q_logits, f = problem(6, 3)
    p_logits = 0.5 * q_logits.flip(-1)
    leaves = {"p": p_logits.clone().requires_grad_(), "q": q_logits.clone().requires_grad_()}
    q = leaves["q"].softmax(-1)
    exact = (q * (f + leaves["p"].log_softmax(-1) - leaves["q"].log_softmax(-1))).sum()
    exact_p, exact_q = torch.autograd.grad(exact, [leaves["p"], leaves["q"]])

    many_p, many_q = replicated(p_logits), replicated(q_logits)

    def model() -> None:
        with pyro.plate("replicas", REPLICAS, dim=-2):
            z = per_datapoint(pyro.sample("z", IndependentRouting(many_p)), -1)
            with pyro.plate("data", 6, dim=-1):
                pyro.factor("f", pick(f, z))

    def guide() -> None:
        with pyro.plate("replicas", REPLICAS, dim=-2):
            pyro.sample("z", procedure(many_q, capacity=2))

    loss = TraceRouting_ELBO().differentiable_loss(model, guide)
    grad_p, grad_q = torch.autograd.grad(-loss, [many_p, many_q])
    assert standard_errors_off(grad_p.squeeze(1), exact_p) < 5
    assert standard_errors_off(grad_q.squeeze(1), exact_q) < 5


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("baseline", [None, {"use_decaying_avg_baseline": True}])
def test_weights_multiply_over_layers(procedure: type, baseline: dict | None) -> None:
    """The second router sees the first expert; the exact gradient sums over both."""
    phi1, f1 = problem(5, 2)
    phi2 = torch.stack([phi1.flip(0), -phi1])  # (first expert, n, k)
    f = torch.stack([f1, f1.roll(1, 0) + 1])  # (first expert, n, second expert)
    leaf1, leaf2 = phi1.clone().requires_grad_(), phi2.clone().requires_grad_()
    joint = leaf1.softmax(-1).mT.unsqueeze(-1) * leaf2.softmax(-1)
    exact = torch.autograd.grad((joint * f).sum(), [leaf1, leaf2])

    many1, many2 = replicated(phi1), phi2.expand(REPLICAS, *phi2.shape).clone().requires_grad_()
    index = torch.arange(5)

    def model() -> None:
        with pyro.plate("replicas", REPLICAS, dim=-2):
            z1 = per_datapoint(pyro.sample("z1", procedure(many1, capacity=3), infer={"baseline": baseline or {}}), -1)
            first = router_choices(z1)
            rows = torch.arange(REPLICAS).unsqueeze(-1)
            logits2 = many2[rows, first, index].unsqueeze(-3)
            z2 = per_datapoint(pyro.sample("z2", procedure(logits2, capacity=4)), -1)
            with pyro.plate("data", 5, dim=-1):
                pyro.factor("f", f[first, index, router_choices(z2)])

    elbo = TraceRouting_ELBO()
    for _ in range(2):
        gradients = torch.autograd.grad(-elbo.differentiable_loss(model, lambda: None), [many1, many2])
    assert standard_errors_off(gradients[0].squeeze(1), exact[0]) < 5
    assert standard_errors_off(gradients[1], exact[1]) < 5


def test_global_latent_variables_keep_their_elbo() -> None:
    """A Gaussian shift of all outputs with a Normal guide: exact ELBO gradient in closed form."""
    phi, f = problem(4, 2)
    location = torch.zeros(REPLICAS, 1, dtype=torch.float64, requires_grad=True)
    y = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("replicas", REPLICAS, dim=-2):
            shift = pyro.sample("shift", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0))
            z = per_datapoint(pyro.sample("z", CapacitySkip(phi, capacity=2)), -1)
            with pyro.plate("data", 4, dim=-1):
                pyro.sample("y", dist.Normal(pick(f, z) + shift, 1.0), obs=y)

    def reparameterised() -> None:
        with pyro.plate("replicas", REPLICAS, dim=-2):
            pyro.sample("shift", dist.Normal(location, 0.5))

    def score_function() -> None:
        with pyro.plate("replicas", REPLICAS, dim=-2):
            pyro.sample("shift", dist.Normal(location, 0.5).has_rsample_(False))

    exact = (phi.softmax(-1) * (y.unsqueeze(-1) - f)).sum()  # d/dlocation at 0
    for guide in (reparameterised, score_function):
        loss = TraceRouting_ELBO().differentiable_loss(model, guide)
        samples = torch.autograd.grad(-loss, location)[0]
        assert standard_errors_off(samples, exact.expand(1)) < 5


def test_svi_learns_the_router() -> None:
    f = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    def model() -> None:
        logits = pyro.param("logits", torch.zeros(2, 2))
        z = pyro.sample(
            "z", GumbelMatching(logits, capacity=1), infer={"baseline": {"use_decaying_avg_baseline": True}}
        )
        with pyro.plate("data", 2):
            pyro.factor("f", pick(f, z))

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.1}), TraceRouting_ELBO())
    losses = [svi.step() for _ in range(200)]
    assert sum(losses[-20:]) / 20 < -1.8
    assert pyro.param("logits").argmax(-1).tolist() == [1, 0]
    assert not [name for name in pyro.get_param_store() if "baseline" in name]


def test_subsampled_plate_scales_the_likelihood() -> None:
    """With weights 1, the loss is the scaled likelihood of the subsample."""

    def model() -> None:
        plate = pyro.plate("data", 100, subsample_size=4, dim=-1)
        z = pyro.sample("z", IndependentRouting(torch.zeros(4, 2)))
        with plate:
            pyro.factor("f", torch.ones(4) + 0 * z)

    assert TraceRouting_ELBO().loss(model, lambda: None) == pytest.approx(-100)


@pytest.mark.parametrize("vectorize", [True, False])
def test_no_joint_log_prob_is_needed(vectorize: bool) -> None:
    """Not even for Pyro's guess of the plates: this distribution has none."""

    def model() -> None:
        z = per_datapoint(pyro.sample("z", DependentRounding(torch.zeros(4, 2), capacity=2)), -1)
        with pyro.plate("data", 4, dim=-1):
            pyro.factor("f", torch.ones(4) + 0 * z)

    elbo = TraceRouting_ELBO(num_particles=3, vectorize_particles=vectorize)
    assert elbo.loss(model, lambda: None) == pytest.approx(-4)


def test_loss_does_not_move_the_baseline() -> None:
    elbo = TraceRouting_ELBO()
    routing = CapacitySkip(torch.zeros(4, 2), capacity=2)

    def model() -> None:
        pyro.sample("z", routing, infer={"baseline": {"use_decaying_avg_baseline": True}})
        with pyro.plate("data", 4):
            pyro.factor("f", torch.ones(4))

    elbo.loss(model, lambda: None)
    assert elbo.baselines.state_dict() == {}
    elbo.loss_and_grads(model, lambda: None)
    state = elbo.baselines.state_dict()
    assert float(state["z"]["total"] / state["z"]["mass"]) == pytest.approx(1.0)
    other = TraceRouting_ELBO()
    other.baselines.load_state_dict(state)
    assert other.baselines.state_dict()["z"]["total"] is state["z"]["total"]


def bad_model(**options: object) -> None:
    infer = {"baseline": options.get("baseline", {}), "data_plate": options.get("data_plate")}
    z = pyro.sample("z", CapacitySkip(torch.zeros(4, 2), capacity=2), infer=infer)
    with pyro.plate(str(options.get("plate", "data")), int(str(options.get("size", 4)))):
        pyro.factor("f", torch.zeros(int(str(options.get("size", 4)))))
    if "second_plate" in options:
        with pyro.plate("second", 4):
            pyro.factor("g", torch.zeros(4))
    if "outside" in options:
        pyro.factor("outside", z.sum().float())
    if "outside_baseline" in options:
        pyro.sample("latent", dist.Normal(0.0, 1.0), infer={"baseline": {"use_decaying_avg_baseline": True}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(baseline={"decay": 1}), r"site 'z': unknown baseline options \['decay'\]; known are"),
        (dict(baseline={"baseline_beta": 1.0}), "baseline_beta must be in"),
        (dict(baseline={"nn_baseline": lambda x: x}), "nn_baseline and nn_baseline_input go together"),
        (dict(baseline={"use_leave_one_out_baseline": True}), "needs num_particles >= 2"),
        (dict(baseline={"baseline_value": torch.zeros(3)}), r"shape \(3,\) but must broadcast .* \(4,\)"),
        (dict(size=5), r"routes n = 4 datapoints, but no plate of size 4 .*'data': 5"),
        (dict(second_plate=True), "no unambiguous plate"),
        (dict(data_plate="missing"), "no plate named 'missing'"),
        (dict(outside=True), r"site 'outside' depends on the assignment \['z'\] but stands outside"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceRouting_ELBO().loss_and_grads(bad_model, lambda **kwargs: None, **options)


def test_a_named_plate_settles_ambiguity() -> None:
    TraceRouting_ELBO().loss_and_grads(bad_model, lambda **kwargs: None, second_plate=True, data_plate="data")


def test_baseline_at_an_ordinary_site_is_refused() -> None:
    def guide(**options: object) -> None:
        pyro.sample("latent", dist.Normal(0.0, 1.0), infer={"baseline": {"use_decaying_avg_baseline": True}})

    with pytest.raises(ValueError, match="site 'latent' asks for a baseline"):
        TraceRouting_ELBO().loss_and_grads(bad_model, guide, outside_baseline=True)
