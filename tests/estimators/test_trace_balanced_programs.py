"""How the balanced objective lives in a Pyro program: other latents, guides, scales, masks, values, refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from prob_moe.distributions import CapacitySkip, DependentRounding, IndependentRouting
from prob_moe.estimators import LeaveOneOut, Predicted, TraceBalanced_ELBO
from tests.estimators.replicas import problem, standard_errors_off


def test_other_latents_keep_their_elbo() -> None:
    """A Bernoulli latent by a guide that scores it, and a Gaussian shift that is reparametrised: by enumeration."""
    phi, f = problem(3, 2)
    leaves = {"phi": phi, "loc": torch.tensor(0.3, dtype=torch.float64), "logit": torch.tensor(0.4).double()}
    single = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    routing = CapacitySkip(single["phi"], capacity=2)
    values = routing.enumerate_support()
    chosen = f.expand(len(values), 3, 2).gather(-1, values.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (values >= 0)
    q = torch.stack([-single["logit"], single["logit"]]).sigmoid()
    flip, loc = torch.tensor([0.0, 1.0]).double(), single["loc"]
    # E[sum_i (1 + flip) f_i + shift] - KL, with shift ~ N(loc, 1) and prior N(0, 1).
    per_flip = (routing.log_prob(values).exp() * chosen.sum(-1)).sum() * (1 + flip) + loc
    prior = torch.tensor([0.5, 0.5]).double()
    objective = (q * (per_flip + prior.log() - q.log())).sum() - loc**2 / 2
    exact = torch.autograd.grad(objective, list(single.values()))

    copies = 4000
    many = {name: leaf.expand(copies, *leaf.shape).clone().requires_grad_() for name, leaf in leaves.items()}

    def model() -> None:
        with pyro.plate("copies", copies, dim=-2):
            flip = pyro.sample("flip", dist.Bernoulli(torch.full((copies, 1), 0.5).double()))
            shift = pyro.sample("shift", dist.Normal(torch.zeros(copies, 1).double(), 1.0))
            pyro.factor("shifted", shift)
            z = pyro.sample("z", CapacitySkip(many["phi"].unsqueeze(-3), capacity=2)).squeeze(-2)
            with pyro.plate("data", 3, dim=-1), pyro.poutine.mask(mask=z >= 0):
                gains = f.expand(copies, 3, 2).gather(-1, z.clamp(min=0).unsqueeze(-1)).squeeze(-1)
                pyro.factor("f", (1 + flip) * gains)

    def guide() -> None:
        with pyro.plate("copies", copies, dim=-2):
            infer = {"baseline": {"baseline_value": torch.tensor(-5.0).double()}}
            pyro.sample("flip", dist.Bernoulli(logits=many["logit"].unsqueeze(-1)), infer=infer)
            pyro.sample("shift", dist.Normal(many["loc"].unsqueeze(-1), 1.0))

    loss = TraceBalanced_ELBO().differentiable_loss(model, guide)
    drawn = torch.autograd.grad(-loss, list(many.values()))
    for one, of_copies in zip(exact, drawn):
        assert standard_errors_off(of_copies, one) < 5


def test_a_guide_may_draw_the_assignment() -> None:
    """From another procedure: then both joint log-probabilities count."""
    phi, f = problem(3, 2)
    single = {"p": (0.5 * phi.flip(-1)).requires_grad_(), "q": phi.clone().requires_grad_()}
    p, q = (IndependentRouting(single[name]) for name in ("p", "q"))
    values = q.enumerate_support()
    total = f.expand(len(values), 3, 2).gather(-1, values.unsqueeze(-1)).squeeze(-1).sum(-1)
    objective = (q.log_prob(values).exp() * (total + p.log_prob(values) - q.log_prob(values))).sum()
    exact = torch.autograd.grad(objective, list(single.values()))
    many = {name: leaf.detach().expand(4000, 1, 3, 2).clone().requires_grad_() for name, leaf in single.items()}

    def model() -> None:
        with pyro.plate("copies", 4000, dim=-2):
            z = pyro.sample("z", IndependentRouting(many["p"])).squeeze(-2)
            with pyro.plate("data", 3, dim=-1):
                pyro.factor("f", f.expand(4000, 3, 2).gather(-1, z.unsqueeze(-1)).squeeze(-1))

    def guide() -> None:
        with pyro.plate("copies", 4000, dim=-2):
            pyro.sample("z", IndependentRouting(many["q"]), infer={"baseline": Predicted(torch.tensor(-9.0).double())})

    loss = TraceBalanced_ELBO().differentiable_loss(model, guide)
    for one, of_copies in zip(exact, torch.autograd.grad(-loss, list(many.values()))):
        assert standard_errors_off(of_copies.squeeze(1), one) < 5


def scaled(logits: Tensor, rows: Tensor | None = None, scale: float = 1.0) -> None:
    f = LOG_LIKELIHOODS if rows is None else LOG_LIKELIHOODS[rows]
    with pyro.poutine.scale(scale=scale):
        plate = pyro.plate("data", len(LOG_LIKELIHOODS), subsample=rows, dim=-1)
        z = pyro.sample("z", IndependentRouting(logits if rows is None else logits[rows]))
        with plate:
            pyro.factor("f", f.gather(-1, z.unsqueeze(-1)).squeeze(-1))


LOG_LIKELIHOODS = problem(4, 2)[1]


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 2])])
def test_scale_and_subsample_scale_costs_and_no_score(rows: Tensor | None) -> None:
    """One draw: gradient and value are those of the unscaled model times the scale."""
    logits = problem(4, 2)[0].requires_grad_()
    losses, gradients = [], []
    for scale in (1.0, 2.5):
        torch.manual_seed(0)
        loss = TraceBalanced_ELBO().differentiable_loss(scaled, None, logits, rows, scale)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, logits)[0])
    torch.testing.assert_close(losses[1], 2.5 * losses[0])
    torch.testing.assert_close(gradients[1], 2.5 * gradients[0])
    if rows is not None:  # every row stands for two
        torch.manual_seed(0)
        with pyro.poutine.trace() as tracer:
            scaled(logits, rows)
        torch.testing.assert_close(losses[0], -2 * tracer.trace.nodes["f"]["fn"].log_factor.sum())


def test_masked_batch_elements_get_no_gradient() -> None:
    logits = problem(4, 2)[0].expand(2, 1, 4, 2).clone().requires_grad_()

    def model() -> None:
        with pyro.plate("batches", 2, dim=-2), pyro.poutine.mask(mask=torch.tensor([[True], [False]])):
            z = pyro.sample("z", CapacitySkip(logits, capacity=2)).squeeze(-2)
            with pyro.plate("data", 4, dim=-1):
                pyro.factor("f", (z >= 0).double())

    TraceBalanced_ELBO().loss_and_grads(model, None)
    assert logits.grad is not None
    assert bool((logits.grad[0] != 0).any())
    assert bool((logits.grad[1] == 0).all())


@pytest.mark.parametrize("vectorize", [True, False])
def test_value_of_the_loss_and_runs_of_the_model(vectorize: bool) -> None:
    """The loss estimates minus the objective, by every entrance, with one run per particle."""
    logits, f = problem(4, 2)
    routing = CapacitySkip(logits, capacity=2)
    values = routing.enumerate_support()
    gains = (f.expand(len(values), 4, 2).gather(-1, values.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (values >= 0)).sum(
        -1
    )
    objective = float((routing.log_prob(values).exp() * gains).sum())
    runs = []

    def model() -> None:
        runs.append(1)
        z = pyro.sample("z", routing)
        chosen = torch.where(z >= 0, f.expand(*z.shape, 2).gather(-1, z.clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0)
        with pyro.plate("data", 4):
            pyro.factor("f", chosen.squeeze(-2) if chosen.dim() > 1 else chosen)

    elbo = TraceBalanced_ELBO(num_particles=500, vectorize_particles=vectorize, max_plate_nesting=1)
    for entrance in (elbo.loss, elbo.loss_and_grads, lambda *pair: elbo.differentiable_loss(*pair).item()):
        runs.clear()
        assert abs(entrance(model, None) + objective) < 5 * float(gains.std()) / 500**0.5 * 2
        assert len(runs) == (1 if vectorize else 500)


def test_a_frozen_router_needs_no_score() -> None:
    """Experts alone learn, also where the procedure has no law."""
    scale = torch.tensor(2.0, requires_grad=True)

    def model(logits: Tensor) -> None:
        z = pyro.sample("z", DependentRounding(logits, capacity=2))
        with pyro.plate("data", 4):
            pyro.factor("f", scale * (z >= 0))

    TraceBalanced_ELBO().loss_and_grads(model, None, torch.zeros(4, 2))
    assert float(scale.grad) == -4
    with pytest.raises(NotImplementedError, match=r"no joint log_prob: .*TraceRouting_ELBO"):
        TraceBalanced_ELBO().loss_and_grads(model, None, torch.zeros(4, 2, requires_grad=True))


def test_loss_does_not_move_the_baseline() -> None:
    elbo, logits = TraceBalanced_ELBO(), torch.zeros(4, 2, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", CapacitySkip(logits, capacity=2), infer={"baseline": {"use_decaying_avg_baseline": True}})
        with pyro.plate("data", 4):
            pyro.factor("f", torch.ones(4) + 0 * z)

    elbo.loss(model, None)
    assert elbo.baselines.state_dict() == {}
    elbo.loss_and_grads(model, None)
    state = elbo.baselines.state_dict()["z"]
    assert float(state["total"] / state["mass"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (LeaveOneOut(), "site 'z': a LeaveOneOut baseline needs num_particles >= 2, got 1"),
        ({"use_leave_one_out_baseline": True}, "site 'z': a LeaveOneOut baseline needs num_particles >= 2"),
        ({"decay": 1}, r"site 'z': unknown baseline options \['decay'\]"),
        (
            Predicted(torch.zeros(3)),
            r"site 'z': .* shape \(3,\) but must broadcast to .* datapoint, \(4,\)",
        ),
        (
            Predicted(torch.zeros(3), per="group"),
            r"site 'z': .* must broadcast to one number per group",
        ),
    ],
)
def test_refusals(baseline: object, message: str) -> None:
    def model() -> None:
        logits = torch.zeros(4, 2, requires_grad=True)
        pyro.sample("z", CapacitySkip(logits, capacity=2), infer={"baseline": baseline})
        pyro.factor("f", torch.zeros(()))

    with pytest.raises(ValueError, match=message):
        TraceBalanced_ELBO().loss_and_grads(model, None)


def test_several_experts_per_datapoint_without_a_law_are_refused() -> None:
    def model() -> None:
        logits = torch.zeros(4, 3, requires_grad=True)
        pyro.sample("z", DependentRounding(logits, capacity=3, num_selected=2))
        pyro.factor("f", torch.zeros(()))

    with pytest.raises(NotImplementedError, match="DependentRounding has no joint log_prob"):
        TraceBalanced_ELBO().loss_and_grads(model, None)
