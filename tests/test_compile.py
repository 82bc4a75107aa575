"""``torch.compile`` over whatever draws or solves: a graph break, and what comes out uncompiled.

Each program is a process of its own, whose first call of a kernel is the compiled one: there the compiler looked
inside. Its own warnings are torch's affair. Inductor draws noise of its own, so equal draws are asked of the other
backends.
"""

import pytest

from tests.compiler import needs_compiler
from tests.numerics.test_compiled import run

COMPARISON = """
import torch
from torch import nn
from pyro.distributions import Normal
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching
from prob_moe.estimators import TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.numerics import dependent_rounding, solve_assignment
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import BASELayer, LossFreeBias, SinkhornBASE

torch.manual_seed(0)
x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, dtype=torch.float64)

def results(function, *inputs):
    torch.manual_seed(1)
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(output.square().sum() for output in outputs if output.requires_grad)
    if not isinstance(loss, torch.Tensor):
        return [*outputs]
    parameters = [*inputs, *(function.parameters() if isinstance(function, nn.Module) else ())]
    return [*outputs, *torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)]

def compare(function, *inputs, backend):
    compiled = results(torch.compile(function, backend=backend), *inputs)
    torch.testing.assert_close(compiled, results(function, *inputs), rtol=1e-9, atol=1e-12)

def experts(out):
    return BatchedExperts(3, 4, None, out, dtype=torch.float64)

class Layer(nn.Module):
    def __init__(self, router):
        super().__init__()
        self.linear, self.router, self.experts = nn.Linear(4, 3, dtype=torch.float64), router, experts(4)

    def forward(self, x):
        return self.router(self.linear(x)).output(self.experts, x)

class Mixture(nn.Module):
    def __init__(self, assignment):
        super().__init__()
        self.elbo = TraceRouting_ELBO()
        self.mixture = MixtureOfExperts(
            nn.Linear(4, 3, dtype=torch.float64), experts(1), lambda out: Normal(out.squeeze(-1), 1.0),
            capacity_factor=1.0, assignment=assignment,
        )

class Training(Mixture):
    def forward(self, x, y):
        return self.elbo.differentiable_loss(self.mixture, None, x, y)

class Prediction(Mixture):
    def forward(self, x):
        return self.mixture.predict(x).mean, self.mixture.routing(x).mode
"""

MATCHINGS = """
compare(lambda x: solve_assignment(x, 3)[0], x, backend="eager")
compare(lambda x: solve_assignment(x.expand(3, 12, 4), 3)[0], x, backend="eager")
compare(lambda x: dependent_rounding(x.detach().softmax(-1)), x, backend="eager")
for distribution in (GumbelMatching, DependentRounding, CapacitySkip):
    def draw(x):
        routing = distribution(2 * x, capacity_factor=1.0)
        value = routing.sample()
        return value, routing.mode, routing.importance_weights(value), routing.router_log_prob(value)

    compare(draw, x, backend="eager")
"""

ROUTERS = """
for router in (BASELayer(), SinkhornBASE()):
    compare(Layer(router), x, backend="aot_eager")
layer = Layer(LossFreeBias(3))
compare(layer, x, backend="aot_eager")
assert layer.router.counts.sum() == 24
"""

MIXTURES = """
for assignment in (GumbelMatching, DependentRounding):
    compare(Training(assignment), x, y, backend="eager")
compare(Prediction(GumbelMatching), x, backend="eager")
"""

INDUCTOR = """
compare(lambda x: x.sin() * solve_assignment(x.cos(), 3)[0].unsqueeze(-1), x, backend="inductor")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [MATCHINGS, ROUTERS, MIXTURES], ids=["matchings", "routers", "mixtures"])
def test_compiled_equals_eager(program):
    run(COMPARISON + program, warnings="ignore")


@pytest.mark.slow
@needs_compiler
def test_inductor_equals_eager():
    run(COMPARISON + INDUCTOR, warnings="ignore")
