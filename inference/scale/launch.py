"""Measurements on other numbers of processes than this one's, each run by the command ``scale``."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

from inference.scale.command import machine_of
from inference.scale.costs import Machine
from inference.scale.measure import Measured
from inference.scale.workload import Workload


@dataclass(frozen=True)
class Launched:
    """
    :param machine: as it was measured on the way; on one process nothing is sent, so that sending costs nothing.
    """

    measured: Measured
    machine: Machine


def launch(num_processes: int, workload: Workload, *, num_steps: int = 10) -> Launched:
    """
    :param num_processes: of this machine, with one thread each.
    :raises RuntimeError: with what the command said, if it failed.
    """
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node {num_processes}"
    options = asdict(workload) | {"num_steps": num_steps, "timeout": 300}
    del options["bytes_per_number"]
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    command = f"{launcher if num_processes > 1 else ''} -m inference scale --json {given}"
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    measured = Measured(**said["measured"])
    bandwidth = float("inf") if said["bandwidth"] is None else said["bandwidth"]
    return Launched(measured, machine_of(workload, measured, said["message"], bandwidth))
