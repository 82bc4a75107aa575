"""The command ``scale``."""

import json
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.table import Table

from inference.registry.builtin import REGISTRY
from inference.registry.options import name_of
from inference.runs.progress import console
from inference.scale.costs import Machine, cost, expert_flops
from inference.scale.measure import Measured, link, measure
from inference.scale.workload import Workload
from inference.training.interrupts import StopSignals
from inference.training.torchrun import LostProcessError, end_each, is_first, num_started, processes


def scale(
    num_groups: Annotated[int, typer.Option(help="Groups of a batch; a multiple of the processes.")] = 4,
    group_size: Annotated[int, typer.Option(help="Datapoints of a group.")] = 512,
    num_experts: Annotated[int, typer.Option(help="Experts.")] = 16,
    features: Annotated[int, typer.Option(help="Of a datapoint, and of an output.")] = 128,
    hidden: Annotated[int, typer.Option(help="Width of an expert.")] = 512,
    num_selected: Annotated[int, typer.Option(help="Experts of a datapoint.")] = 1,
    capacity_factor: Annotated[float, typer.Option(help="Slots of an expert are ceil(factor * n m / k).")] = 1.25,
    assignment: Annotated[
        str,
        typer.Option(
            callback=name_of("procedure", lambda: REGISTRY.procedures), help="Procedure with a capacity that assigns."
        ),
    ] = "dependent-rounding",
    num_steps: Annotated[int, typer.Option(help="Steps that are timed, behind two that are not.")] = 20,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for other processes, under torchrun.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON, and nothing else.")] = False,
) -> None:
    """
    Time a step of a layer of experts on these processes, and say what of it passes in exchanges with others.

    Beside it stands what the cost model says, for a machine that is measured on the way. One thread for each process.

    Example: python -m inference scale

    Example: torchrun --nproc-per-node 2 -m inference scale
    """
    torch.set_num_threads(1)
    try:
        if num_steps < 1:
            raise ValueError(f"num_steps must be a positive int, got {num_steps!r}")
        workload = Workload(
            num_groups, group_size, num_experts, features, hidden, num_selected, capacity_factor, assignment
        )
        facts = {**asdict(workload), "num_steps": num_steps}
        with StopSignals(), processes(num_experts, "cpu", timeout, facts) as mesh:
            measured = measure(workload, mesh, num_steps)
            message, bandwidth = (0.0, float("inf")) if mesh is None else link()
    except LostProcessError as error:
        end_each(str(error), 2, together=False)
    except (ValueError, NotImplementedError) as error:
        end_each(str(error), 2)
    if not is_first():
        return
    machine = machine_of(workload, measured, message, bandwidth)
    if as_json:
        numbers = {"measured": asdict(measured), "message": message, "bandwidth": bandwidth if message else None}
        typer.echo(json.dumps({"workload": asdict(workload), **numbers}))
        return
    _print(workload, measured, machine)


def machine_of(workload: Workload, measured: Measured, message: float, bandwidth: float) -> Machine:
    """
    :param measured: a step on one process or several.
    :returns: the machine on which draw and experts take that long, and a row what is left of the step.
    """
    datapoints = workload.num_groups // measured.num_processes * workload.group_size
    left = measured.work - measured.draw - measured.experts
    return Machine(
        flops=expert_flops(workload, measured.num_processes) / measured.experts,
        row=max(left, 0.0) / datapoints,
        bandwidth=bandwidth,
        message=message,
        draw=measured.draw / (datapoints * workload.num_experts),
    )


def _print(workload: Workload, measured: Measured, machine: Machine) -> None:
    expected = cost(workload, machine, measured.num_processes)
    table = Table(
        title=f"a step on {measured.num_processes} processes, {workload.num_groups} groups of {workload.group_size}"
    )
    for name in ("", "measured", "by the model"):
        table.add_column(name, justify="left" if not name else "right")
    collectives = expected.exchange + expected.gradients
    rows = [
        ("step, ms", f"{1e3 * measured.step:.1f}", f"{1e3 * expected.total:.1f}"),
        ("work, ms of processor", f"{1e3 * measured.work:.1f}", f"{1e3 * expected.work:.1f}"),
        ("draw, ms of processor", f"{1e3 * measured.draw:.1f}", "as measured"),
        ("experts, ms of processor", f"{1e3 * measured.experts:.1f}", "as measured"),
        ("collectives, ms", f"{1e3 * measured.collectives:.1f}", f"{1e3 * collectives:.1f}"),
        ("their share, with waiting", f"{100 * measured.share:.1f} %", f"{100 * expected.share:.1f} %, without"),
        ("datapoints sent, kB", f"{measured.exchanged / 1e3:.1f}", f"{expected.exchanged / 1e3:.1f}"),
        ("gradients sent, kB", f"{measured.added_up / 1e3:.1f}", f"{expected.added_up / 1e3:.1f}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if num_started() == 1:
        console.print("one process sends nothing: start several by torchrun --nproc-per-node 2 -m inference scale")
