"""Costs of a step on several processes: what the model says is what is sent, and where it grows."""

import json
import math
from dataclasses import replace

import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from inference.cli import app
from inference.scale.command import machine_of
from inference.scale.costs import Machine, cost
from inference.scale.measure import measure
from inference.scale.traffic import SHARES, Traffic
from inference.scale.workload import Workload
from tests.inference.test_broken_input import refused
from tests.parallel.world import run_world

SMALL = Workload(num_groups=4, group_size=24, num_experts=5, features=3, hidden=4)
DEVICE = Machine(flops=1e12, row=1e-7, bandwidth=1e9, message=1e-6, draw=1e-9)


def test_one_process_sends_nothing():
    measured = measure(SMALL, None, 1)
    assert (measured.exchanged, measured.added_up, measured.calls, measured.share) == (0, 0, 0, 0.0)
    alone = cost(SMALL, DEVICE, 1)
    assert (alone.exchange, alone.gradients, alone.exchanged) == (0, 0, 0)
    machine = machine_of(SMALL, measured, 0.0, math.inf)
    expected = cost(SMALL, machine, 1)
    assert (expected.draw, expected.experts) == pytest.approx((measured.draw, measured.experts))
    assert expected.total == expected.work >= measured.work * (1 - 1e-9)


def sent(rank: int) -> list[tuple[int, int]]:
    from prob_moe.parallel import expert_mesh

    found = []
    for workload in (SMALL, replace(SMALL, num_selected=2, num_experts=4), replace(SMALL, num_experts=1)):
        measured = measure(workload, expert_mesh(workload.num_experts), 1)
        found.append((measured.exchanged, measured.added_up))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_as_much_is_sent_as_the_model_says(processes, tmp_path):
    """Datapoints to the byte; beside gradients a few numbers more, by which processes compare shapes."""
    for found in run_world(processes, sent, tmp_path):
        for (exchanged, added_up), workload in zip(
            found, (SMALL, replace(SMALL, num_selected=2, num_experts=4), replace(SMALL, num_experts=1))
        ):
            expected = cost(workload, DEVICE, processes)
            assert exchanged == expected.exchanged
            assert expected.added_up <= added_up <= expected.added_up + 150


def test_what_grows_with_the_processes_and_what_does_not():
    """A group for each process: work, draw and bytes of a process stay as they are, and messages grow."""
    costs = [cost(replace(SMALL, num_groups=p, num_experts=64), DEVICE, p) for p in (1, 2, 8, 64, 4096)]
    assert len({one.draw for one in costs}) == 1
    assert len({one.rows for one in costs}) == 1
    assert len({round(one.experts, 15) for one in costs}) == 1
    exchanged = [one.exchanged for one in costs]
    assert exchanged == sorted(exchanged)
    assert exchanged[-1] == exchanged[-2] < 64 / 63 * exchanged[-1]
    assert costs[-1].exchange == costs[-2].exchange
    assert costs[-1].gradients > costs[-2].gradients


def test_traffic_leaves_the_collectives_as_they_were():
    real = [getattr(dist, name) for name in SHARES]
    with Traffic():
        assert [getattr(dist, name) for name in SHARES] != real
    assert [getattr(dist, name) for name in SHARES] == real


def test_the_command_says_what_a_step_costs():
    small = ["--group-size", "24", "--num-experts", "4", "--features", "3", "--hidden", "4", "--num-steps", "2"]
    result = CliRunner().invoke(app, ["scale", *small, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["workload"]["num_groups"] == 4
    assert found["measured"]["step"] > found["measured"]["draw"] > 0
    result = CliRunner().invoke(app, ["scale", *small])
    assert "one process sends nothing" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-groups", "0"], "num_groups must be a positive int"),
        (["--num-steps", "0"], "num_steps must be a positive int, got 0"),
        (["--assignment", "independent"], "assignment must be a procedure with a capacity, got 'independent'"),
        (["--assignment", "abacus"], "unknown procedure 'abacus'"),
        (["--num-selected", "99"], "num_selected"),
    ],
)
def test_mistakes(arguments, message):
    assert message in refused("scale", *arguments)


def test_groups_that_the_processes_do_not_divide():
    with pytest.raises(ValueError, match="num_groups=4 is no multiple of the number of processes, 3"):
        cost(SMALL, DEVICE, 3)
