"""Processes for a test: started together, stopped together, and never waited for without a limit."""

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

#: seconds: for a whole world, and for one message
LIMIT, MESSAGE_LIMIT = 600, 180


def run_world(num_processes: int, program: Callable[[int], Any], folder: Path, limit: float = LIMIT) -> list[Any]:
    """
    :param program: what every process runs, given its number, once the process group is there.
    :param folder: an empty one.
    :returns: what it returned in each.
    :raises RuntimeError: with the traceback of the first that failed, or if they are not done in time.
    """
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, num_processes, program, folder)) for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    finally:
        for process in processes:
            process.kill()
            process.join()
    errors = [path.read_text() for path in sorted(folder.glob("error.*"))]
    if errors or late:
        raise RuntimeError(f"processes {late} were not done after {limit} s\n" * bool(late) + "\n".join(errors))
    return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in range(num_processes)]


def _run(rank: int, num_processes: int, program: Callable[[int], Any], folder: Path) -> None:
    import datetime

    from tests import seeds

    seeds.install()
    torch.set_num_threads(1)
    os.environ["TORCH_SHOW_CPP_STACKTRACES"] = "0"
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=num_processes,
            timeout=datetime.timedelta(seconds=MESSAGE_LIMIT),
        )
        torch.save(program(rank), folder / f"result.{rank}")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error.{rank}").write_text(f"process {rank}: {traceback.format_exc()}")
        raise
