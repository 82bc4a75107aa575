"""What the processes of a world run. Small modules, for every process imports them anew."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from prob_moe.distributions import CapacitySkip, IndependentRouting, keyed_draws
from prob_moe.experts import BatchedExperts, ModuleExperts, StackedExperts
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.parallel import Groups, ParallelExperts, expert_mesh
from prob_moe.parallel.mesh import DIMENSIONS
from prob_moe.rules import SMEAR, Switch
from tests.parallel import cases


class Labelled(nn.Module):
    """Multiplies by a number of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.to(x.dtype)


def trainings(shape: tuple[int, int], names: list[str], elbos: list[str], dense: list[str]) -> dict[str, Any]:
    """:returns: what :mod:`tests.parallel.cases` gives on a mesh of a shape."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=DIMENSIONS)
    found = {name: cases.train(cases.CASES[name], mesh) for name in names}
    for name in elbos:
        found[name] = cases.infer(*cases.ELBOS[name], mesh)
    for way in dense:
        found[way] = cases.train(cases.CASES["skip"], mesh, dense=way)
    return found


def all_trainings(rank: int, shape: tuple[int, int]) -> dict[str, Any]:
    return trainings(shape, list(cases.CASES), list(cases.ELBOS), ["ddp", "fsdp"])


def few_trainings(rank: int) -> dict[str, Any]:
    """On two processes: what the fast tests look at."""
    few = ["skip", "skip, bound", "independent, gates", "loss-free bias"]
    found = {"divided": trainings((1, 2), few, ["Pyro, mixture"], ["ddp", "fsdp"])}
    found["copied"] = trainings((2, 1), ["independent, slots"], [], [])
    found["broken"] = broken_trainings()
    found["labels"] = labels()
    found["errors"] = errors(rank)
    return found


def broken_trainings() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=DIMENSIONS)
    skip, one = cases.CASES["skip"], {"mesh": mesh, "num_steps": 1}
    found = {
        name: cases.train(skip, **one, broken=cases.Broken(**{name: True}))
        for name in ("experts_within_group", "local_n", "averaged")
    }
    right = keyed_draws.seed_of
    try:
        keyed_draws.seed_of = lambda seed, step, micro, site, particle, group: right(
            seed, step, micro, "", particle, group
        )
        found["no name in the key"] = cases.train(skip, **one)
        keyed_draws.seed_of = lambda seed, step, micro, site, particle, group: right(
            seed, step, micro, site, particle, group - 2 * dist.get_rank()
        )
        found["groups counted in each process"] = cases.train(skip, **one)
    finally:
        keyed_draws.seed_of = right
    return found


def labels() -> dict[str, Any]:
    """Where every datapoint went, in float64, float32 and bfloat16; with experts that do nothing; after a copy."""
    mesh = expert_mesh(cases.K)
    groups = Groups(cases.G, mesh)
    found: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        router = nn.Linear(cases.D, cases.K).to(dtype)
        factors = StackedExperts([Labelled(1.0 + expert) for expert in range(cases.K)])
        same = StackedExperts([nn.Identity() for _ in range(cases.K)])
        x, mask = groups.cut(cases.batch(0, 0)[0].to(dtype))
        for name, experts in {"label": factors, "identity": same}.items():
            layer = ExpertLayer(copy.deepcopy(router), experts, IndependentRouting, mesh=mesh)
            layer = copy.deepcopy(layer)
            with groups.keyed_draws(1).step(0), record_routing() as routed:
                out = layer(x, mask)
            value = routed.record().layers["experts"].value
            found[f"{name} {dtype}"] = (x, value, mask, out)
            found[f"{name} {dtype} served"] = (x, layer.router(x).argmax(-1), mask, layer.eval()(x, mask))
    return found


def errors(rank: int) -> dict[str, str]:
    """:returns: the message of each mistake, in this process."""
    mesh = expert_mesh(cases.K)
    groups = Groups(cases.G, mesh)

    def layer(*, k: int = cases.K, hidden: int = 4, seed: int = 0, rule: Any = CapacitySkip, **options: Any) -> Any:
        torch.manual_seed(seed)
        options = {"capacity_factor": 1.5, "mesh": mesh} | options
        return ExpertLayer(None, BatchedExperts(k, 3, hidden, 3), rule, **options)

    def uneven_data() -> None:
        with groups.keyed_draws(0).step(0):
            layer()(torch.zeros(2, 4 + 4 * rank, 3))

    def uneven_gradient() -> None:
        with groups.keyed_draws(0).step(0), torch.set_grad_enabled(rank == 0):
            layer()(torch.zeros(2, 4, 3))

    def router_apart() -> None:
        torch.manual_seed(0)
        experts = BatchedExperts(cases.K, 3, 4, 3)
        torch.manual_seed(rank)
        ExpertLayer(nn.Linear(3, cases.K), experts, CapacitySkip, capacity_factor=1.5, mesh=mesh)

    mistakes: dict[str, Callable[[], Any]] = {
        "more pieces than experts": lambda: layer(k=1),
        "one process has other experts": lambda: layer(k=cases.K - rank),
        "shapes of experts": lambda: layer(hidden=4 + rank),
        "seeds of experts": lambda: layer(seed=rank),
        "seeds of the router": router_apart,
        "one module": lambda: ParallelExperts(ModuleExperts(nn.Linear(3, 3), 4), mesh),
        "sets of experts": lambda: ParallelExperts(BatchedExperts(4, 3, 4, 3, batch_shape=(2,)), mesh),
        "shared parameters": lambda: ParallelExperts(BatchedExperts(4, 3, 4, 3, activation=nn.PReLU()), mesh),
        "rule": lambda: layer(rule=SMEAR, capacity_factor=None),
        "no mesh": lambda: layer(mesh="cpu"),
        "names of the mesh": lambda: layer(mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))),
        "groups": lambda: Groups(3, mesh),
        "groups apart": lambda: Groups(2 + 2 * rank, mesh),
        "seeds of draws": lambda: groups.keyed_draws(rank),
        "shapes of data": uneven_data,
        "gradients": uneven_gradient,
        "no keys": lambda: layer()(torch.zeros(2, 4, 3)),
        "pickle": lambda: pickle.dumps(layer()),
    }
    return {name: _message(mistake) for name, mistake in mistakes.items()} | {
        "none": _message(partial(layer, rule=Switch))
    }


def _message(mistake: Callable[[], Any]) -> str:
    try:
        mistake()
    except (ValueError, NotImplementedError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
