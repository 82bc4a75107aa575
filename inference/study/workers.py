"""Who trains the runs of a study: processes of this machine, or the workers of a Dask cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import joblib
import typer

#: a cluster of this machine, in the place of an address
LOCAL = "local"

#: options of the commands that train runs
Jobs = Annotated[int, typer.Option("--jobs", help="Processes; -1 for one a core.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        help=f"Address of a Dask scheduler whose workers train, tcp://host:port; or {LOCAL} for --jobs here.",
    ),
]
#: for a refusal to write where there is something already
RUNS_ARE_KEPT = "; finished runs are kept, and not trained again"


@contextmanager
def workers(scheduler: str | None, jobs: int) -> Iterator[Any]:
    """
    joblib's processes. Of a cluster's, one that dies costs the runs that it had under way, which another one trains
    again; after three deaths over the same run the study ends. A run depends on its settings alone, so that the results
    are those of one process.

    :param scheduler: None for processes of this machine; an address, tcp://host:port, for the workers of a cluster; or
        ``"local"`` for a cluster of this machine.
    :param jobs: processes of this machine, -1 for one a core.
    :returns: within, Dask's client; None without a cluster.
    :raises ValueError: if Dask is not installed, or ``jobs`` is neither positive nor -1.
    :raises OSError: if there is no scheduler at the address.
    """
    if scheduler is None:
        with joblib.parallel_config(backend="sequential" if jobs == 1 else "loky", n_jobs=jobs):
            yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ValueError("--scheduler needs Dask: pip install 'prob_moe[cluster]'") from None
    if scheduler != LOCAL:
        with Client(scheduler, timeout=10) as client, joblib.parallel_config(backend="dask", n_jobs=-1):  # type: ignore[no-untyped-call]
            yield client
        return
    count = joblib.cpu_count() if jobs == -1 else jobs
    if count < 1:
        raise ValueError(f"jobs must be a positive int, or -1 for one a core, got {jobs!r}")
    with (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as client,  # type: ignore[no-untyped-call]
        joblib.parallel_config(backend="dask", n_jobs=-1),
    ):
        yield client
