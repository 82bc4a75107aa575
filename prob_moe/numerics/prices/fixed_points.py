"""The estimate of log P as a function of the logits while its points stay, with first and second derivatives.

The estimate is log Σ_m w_m with w_m ∝ p(Z, v_m) at fixed prices v_m. With the scores s_m = ∇ log p(Z, v_m) and the
shares ω_m = w_m / Σ w, its gradient and Hessian are self-normalised expectations:

    g = Σ_m ω_m s_m,        H = Σ_m ω_m (∇s_m + s_m s_mᵀ) − g gᵀ.

Each is a function of autograd of its own whose derivative is the next one, in reverse and in forward mode. All are
computed in chunks of points, so that nothing of size (points, n, k) is kept between forward and backward.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prob_moe._transforms import nested_forward_mode
from prob_moe.numerics.prices.derivatives import logit_score
from prob_moe.numerics.prices.estimate import Nodes, PriceEstimate
from prob_moe.numerics.prices.problem import PriceProblem, in_chunks


def integrate(
    logits: Tensor, problem: PriceProblem, integral: Callable[[PriceProblem], PriceEstimate]
) -> tuple[Tensor, Tensor, Tensor]:
    """log P, its error and the method by ``integral``, with the derivatives of the estimate at fixed points.

    :param logits: (batch, n, k), what ``problem`` was built from.
    :returns: nats, (batch,) each, and long (batch,); log P twice differentiable in ``logits``.
    """
    if nested_forward_mode():
        raise NotImplementedError(
            "the log-probability of a matching cannot be differentiated by forward mode inside forward mode; "
            "torch.func.hessian works, and so do jacrev(jacrev(f)) and jacrev(jacfwd(f))"
        )
    log_prob, error, method, *nodes = _Estimate.apply(integral, *problem)  # type: ignore[no-untyped-call]
    return _Value.apply(logits, *problem, log_prob, *nodes), error, method  # type: ignore[no-untyped-call]


class _Sum(NamedTuple):
    """What the derivatives are computed from, packed as tensors for autograd's contexts."""

    problem: PriceProblem
    log_prob: Tensor
    nodes: list[Nodes]

    @classmethod
    def unpack(cls, packed: tuple[Tensor, ...]) -> "_Sum":
        fields = len(PriceProblem._fields)
        nodes = packed[fields + 1 :]
        return cls(
            PriceProblem(*packed[:fields]),
            packed[fields],
            [Nodes(*nodes[i : i + 3]) for i in range(0, len(nodes), 3)],
        )

    def shares(self, node: Nodes) -> Tensor:
        """ω_m, (points, b)."""
        return (node.log_weights - self.log_prob[node.members]).exp()


class _Estimate(torch.autograd.Function):
    # A constant to autograd. It is a function of autograd because torch.func lifts its wrappers for such a one, and the
    # integral's generators of points do not know them.
    @staticmethod
    def forward(integral: Callable[[PriceProblem], PriceEstimate], *problem: Tensor) -> tuple[Tensor, ...]:
        estimate = integral(PriceProblem(*problem))
        return *estimate[:3], *(tensor for node in estimate.nodes for tensor in node)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        raise _no_vmap()


class _Value(torch.autograd.Function):
    """log Σ_m w_m, (batch,)."""

    @staticmethod
    def forward(logits: Tensor, *packed: Tensor) -> Tensor:
        return _Sum.unpack(packed).log_prob.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _Gradient.apply(*ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return upstream[:, None, None] * gradient, *[None] * (len(ctx.saved_tensors) - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        gradient = _Gradient.apply(*ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (gradient * tangent).sum((-2, -1))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> Any:
        raise _no_vmap()


class _Gradient(torch.autograd.Function):
    """g, (batch, n, k)."""

    @staticmethod
    def forward(logits: Tensor, *packed: Tensor) -> Tensor:
        total = _Sum.unpack(packed)
        gradient = torch.zeros_like(total.problem.logits)
        for node in total.nodes:
            problem, shares = total.problem.select(node.members), total.shares(node)
            part = torch.zeros_like(problem.logits)
            for prices, share in zip(in_chunks(node.prices, problem), in_chunks(shares, problem)):
                part += torch.einsum("mbnk,mb->bnk", logit_score(problem, prices), share)
            gradient.index_add_(0, node.members, part)
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, *packed = ctx.saved_tensors
        product = _HessianProduct.apply(logits, upstream, packed.pop(), *packed)  # type: ignore[no-untyped-call]
        return product, *[None] * len(packed)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        logits, *packed = ctx.saved_tensors
        return _HessianProduct.apply(logits, tangent, packed.pop(), *packed)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> Any:
        raise _no_vmap()


class _HessianProduct(torch.autograd.Function):
    """H u for a direction u, (batch, n, k): symmetric and linear in u."""

    @staticmethod
    def forward(logits: Tensor, direction: Tensor, gradient: Tensor, *packed: Tensor) -> Tensor:
        if torch._C._functorch.is_legacy_batchedtensor(direction):
            raise NotImplementedError(
                "the log-probability of a matching has no batched gradients (vectorize=True, is_grads_batched=True); "
                "torch.func.hessian works, and torch.autograd.functional with vectorize=False"
            )
        total = _Sum.unpack(packed)
        product = -(gradient * direction).sum((-2, -1), keepdim=True) * gradient
        for node in total.nodes:
            problem, shares = total.problem.select(node.members), total.shares(node)
            along = direction[node.members]
            part = torch.zeros_like(problem.logits)
            for prices, share in zip(in_chunks(node.prices, problem), in_chunks(shares, problem)):
                score, change = _score_and_change(problem, prices, along)
                change = change + (score * along).sum((-2, -1), keepdim=True) * score
                part += torch.einsum("mbnk,mb->bnk", change, share)
            product = product.index_add(0, node.members, part)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        logits, _, *rest = inputs
        ctx.save_for_backward(logits, *rest)
        ctx.save_for_forward(logits, *rest)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[0]:
            raise _no_third()
        logits, *rest = ctx.saved_tensors
        product = _HessianProduct.apply(logits, upstream, *rest)  # type: ignore[no-untyped-call]
        return None, product, *[None] * len(rest)

    @staticmethod
    def jvp(ctx: Any, logits_tangent: Any, tangent: Tensor, *rest: Any) -> Tensor:
        if logits_tangent is not None:
            raise _no_third()
        logits, *others = ctx.saved_tensors
        return _HessianProduct.apply(logits, tangent, *others)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: Any, logits: Tensor, direction: Tensor, *rest: Tensor) -> Any:
        if in_dims[0] is not None or any(dim is not None for dim in in_dims[2:]):
            raise _no_vmap()
        # One direction after another: a chunk of points is as large as memory should hold at once.
        products = [_HessianProduct.apply(logits, u, *rest) for u in direction.unbind(in_dims[1])]  # type: ignore[no-untyped-call]
        return torch.stack(products), 0


def _score_and_change(problem: PriceProblem, prices: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """s_m and its derivative along a direction u, ∇s_m u, (points, batch, n, k) each."""
    with warnings.catch_warnings():
        # torch's own, at the first use of forward mode in a process.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        score, change = torch.func.jvp(  # type: ignore[misc]
            lambda logits: logit_score(problem._replace(logits=logits), prices), (problem.logits,), (direction,)
        )
    return score, change


def _no_third() -> NotImplementedError:
    return NotImplementedError("the log-probability of a matching has derivatives of first and second order, no third")


def _no_vmap() -> NotImplementedError:
    return NotImplementedError(
        "the log-probability of a matching cannot be mapped by vmap; it takes batches itself, logits (*batch, n, k)"
    )
