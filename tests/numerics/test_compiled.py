"""Kernels where processes fork, threads call at once, nothing can be cached, or a compiler wants to look inside.

Each program runs in a process of its own: what went wrong here ended or stopped the process.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
import torch

import prob_moe
from prob_moe.numerics import _compiled, solve_assignment
from prob_moe.numerics._compiled import batch_kernel

DRAWS = """
import torch
from prob_moe.distributions import DependentRounding, GumbelMatching
from prob_moe.numerics import shortest_distances, sparse_transport

logits = torch.randn(16, 128, 8, generator=torch.Generator().manual_seed(0))

def results():
    torch.manual_seed(1)
    matching, rounding = GumbelMatching(logits, capacity_factor=1.0), DependentRounding(logits, capacity_factor=1.0)
    costs = logits[..., :8, :].abs()
    return [
        matching.sample(), matching.mode, rounding.sample(), rounding.log_marginals,
        shortest_distances(costs), sparse_transport(logits, 2, max_iterations=5).plan,
    ]

def equal(ours, others):
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))
"""

LOADER = """
class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return results()

first = {first}
loader = torch.utils.data.DataLoader(Draws(), batch_size=None, num_workers=2, multiprocessing_context="fork")
for batch in loader:
    assert equal(batch, results())
assert equal(first or results(), results())
"""

# What torch itself computes on several threads hangs in a child of a process with OpenMP threads; matchings do not.
POOL = """
import multiprocessing
from prob_moe.numerics import solve_assignment

def draw(index):
    torch.set_num_threads(1)
    return results()[0].sum().item()

def solve(index):
    assert torch.get_num_threads() == 2
    return solve_assignment(logits, 16).assignment.equal(expected)

results()
expected = solve_assignment(logits, 16).assignment
for work in (draw, solve):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert len(set(pool.map_async(work, range(4)).get(60))) == 1
"""

THREADS = """
import threading

expected, found = results(), []
barrier = threading.Barrier(4)

def work():
    torch.set_num_threads(2)
    barrier.wait()
    for _ in range(5):
        found.append([matching.assignment for matching in solve()])

def solve():
    return [solve_assignment(logits, 16), solve_assignment(logits[:3].double(), 16)]

from prob_moe.numerics import solve_assignment
expected = [matching.assignment for matching in solve()]
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 20
assert all(equal(one, expected) for one in found)
"""


def run(
    program: str, warnings: str = "error", *, timeout: float = 100, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program with two threads, warnings being errors; it must end by itself, and well."""
    threads = dict(OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2")
    done = subprocess.run(
        [sys.executable, "-P", "-W", warnings, "-c", "import os, sys\n" + program],
        env={**os.environ, **threads, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done


def layers() -> list[str]:
    return ["workqueue", *(["omp"] if sys.platform.startswith("linux") else [])]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("layer", layers())
def test_a_loader_worker_draws_batches(layer):
    run(DRAWS + LOADER.format(first="results()"), NUMBA_THREADING_LAYER=layer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_loader_worker_makes_the_first_draw():
    run(DRAWS + LOADER.format(first="None"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pool_of_forked_processes_draws_and_solves():
    run(DRAWS + POOL)


@pytest.mark.parametrize("layer", layers())
def test_threads_solve_at_once(layer):
    run(DRAWS + THREADS, NUMBA_THREADING_LAYER=layer)


def test_threads_change_nothing(monkeypatch):
    """A batch cut into pieces gives what it gives whole, masks and a batch of one included."""
    scores = torch.randn(37, 64, 8)
    mask = torch.rand(37, 64) < 0.7
    monkeypatch.setattr(_compiled, "num_threads", lambda: 1)
    whole = solve_assignment(scores, 8, mask=mask), solve_assignment(scores, 8)
    monkeypatch.setattr(_compiled, "num_threads", lambda: 3)
    for ours, others in zip((solve_assignment(scores, 8, mask=mask), solve_assignment(scores, 8)), whole):
        assert all(torch.equal(a, b) for a, b in zip(ours, others))


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    @batch_kernel
    def fails(values):
        for b in range(values.shape[0]):
            if values[b, 0] == 7:
                raise ValueError("the seventh")

    monkeypatch.setattr(_compiled, "num_threads", lambda: 2)
    monkeypatch.setattr(_compiled, "SMALL", 0)
    with pytest.raises(ValueError, match="the seventh"):
        fails(torch.arange(9.0).view(9, 1).numpy())


@pytest.fixture
def read_only(tmp_path) -> dict[str, str]:
    """An installation where no cache can be made (a file is where its folder would be), and a home of that kind."""
    copy = tmp_path / "prob_moe"
    shutil.copytree(Path(prob_moe.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").touch()
    home = tmp_path / "home"
    home.touch()
    environment = dict(PYTHONPATH=str(tmp_path), HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    return {**environment, "NUMBA_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"}


SMALL_SOLVE = """
import torch
from prob_moe.numerics import shortest_distances
import prob_moe
assert prob_moe.__file__.startswith(os.environ["PYTHONPATH"])
print(shortest_distances(torch.ones(2, 3, 3)).sum().item())
shortest_distances(torch.ones(2, 3, 3))
"""


@pytest.mark.slow
def test_a_read_only_installation_runs_without_a_cache(read_only):
    done = run(SMALL_SOLVE, **read_only)
    assert done.stdout == "12.0\n"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
    assert done.stderr.count("prob_moe compiles its kernels") == 1
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.slow
def test_a_cache_elsewhere_is_used(read_only, tmp_path):
    """As the warning says; the second process has nothing to compile, and says nothing."""
    read_only["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    first = run(SMALL_SOLVE, **read_only)
    assert "compiles" in first.stderr
    assert "NUMBA_CACHE_DIR" not in first.stderr
    assert run(SMALL_SOLVE, **read_only).stderr == ""


@pytest.mark.slow
def test_a_change_in_another_kernel_is_seen(read_only, tmp_path):
    """Code of one kernel lives on in those that call it, which numba does not look for."""
    read_only["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    run(SMALL_SOLVE, **read_only)
    assert run(SMALL_SOLVE, **read_only).stderr == ""
    with (tmp_path / "prob_moe/numerics/rounding/_cholesky.py").open("a") as file:
        file.write("# changed\n")
    assert "compiles" in run(SMALL_SOLVE, **read_only).stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut off", "taken away"])
def test_a_damaged_cache_costs_time_only(read_only, tmp_path, damage):
    cache = tmp_path / "cache"
    read_only["NUMBA_CACHE_DIR"] = str(cache)
    if damage == "cut off":
        run(SMALL_SOLVE, **read_only)
        for file in cache.rglob("*.nbi"):
            file.write_bytes(b"")
        done = run(SMALL_SOLVE, **read_only)
    else:
        gone = "import prob_moe.numerics, shutil\nshutil.rmtree(os.environ['NUMBA_CACHE_DIR'])\n"
        gone += "open(os.environ['NUMBA_CACHE_DIR'], 'w').close()\n"
        done = run(gone + SMALL_SOLVE, **read_only)
    assert done.stdout == "12.0\n"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1


BITS = """
import hashlib, torch
from prob_moe.distributions import DependentRounding

logits = torch.randn(3, 64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
for scale in (1.0, 8.0):
    for several in ({}, {"num_selected": 2}):
        marginals = DependentRounding(scale * logits, capacity_factor=1.1, **several).log_marginals
        print(hashlib.sha256(marginals.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_who_compiles_has_the_bits_of_those_that_load(tmp_path):
    """So that a fit which goes on in another process is the same fit."""
    first, second = (run(BITS, timeout=400, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert "compiles" in first.stderr
    assert second.stderr == ""
    assert first.stdout == second.stdout


def test_importing_the_library_imports_no_compiler():
    run("import prob_moe.mixture, prob_moe.rules\nassert 'torch._dynamo' not in sys.modules")


def test_kernels_use_no_threads_of_numba():
    """They end a process after a fork, or when two of its threads call at once."""
    solve_assignment(torch.randn(16, 128, 8), 16)
    for compiled in vars(sys.modules["prob_moe.numerics.assignment._solver"]).values():
        if isinstance(compiled, numba.core.dispatcher.Dispatcher):
            assert not compiled.targetoptions.get("parallel")
