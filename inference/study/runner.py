"""Many runs over many processes, or machines."""

from collections.abc import Callable, Sequence

from joblib import Parallel, delayed

from inference.registry.plugins import load, loaded
from inference.study.cache import Cache, Record
from inference.study.settings import Run
from inference.study.training import train


def run_all(
    runs: Sequence[Run],
    cache: Cache,
    *,
    n_jobs: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Record]:
    r"""
    Train what the cache does not have.

    Every record is stored as soon as it is there, so whatever ends the study early costs the runs under way, and the
    next call goes on. Workers need no common file system: they send records back, and this process stores them.

    The processes are joblib's. A surrounding :class:`joblib.parallel_config` chooses others, on a cluster for one::

        client = distributed.Client("tcp://scheduler:8786")
        with joblib.parallel_config(backend="dask"):
            run_all(runs, cache)

        ray.util.joblib.register_ray()
        with joblib.parallel_config(backend="ray"):
            run_all(runs, cache)

    :param n_jobs: processes, -1 for one a core; None leaves it to the surrounding configuration, by default 1.
    :param advance: called with a number of runs that are done.
    :returns: one record per run, in their order.
    """
    records = {run: record for run in runs if (record := cache.load(run)) is not None}
    missing = [run for run in dict.fromkeys(runs) if run not in records]
    advance(len(runs) - len(missing))
    plugins = sorted(loaded())
    with Parallel(n_jobs=n_jobs, return_as="generator_unordered") as parallel:
        for run, record in parallel(delayed(_train)(run, plugins) for run in missing):
            cache.store(run, record)
            records[run] = record
            advance(1)
    return [records[run] for run in runs]


def _train(run: Run, plugins: list[str]) -> tuple[Run, Record]:
    for plugin in plugins:  # this process may be another one
        load(plugin)
    return run, train(run)
