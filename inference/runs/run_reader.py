"""A run as it lies in its folder, read without trusting any of it."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from inference.registry.builtin import REGISTRY
from inference.runs.checkpoint import CheckpointError, differences, load_newest
from inference.runs.config import FitConfig, MissingPluginError
from inference.runs.run_folder import RunFolder
from inference.tasks import Task
from inference.training.run import Fit


@dataclass
class Run:
    """
    What could be read of a run. What could not stands in :attr:`problems`, and is empty here.

    :param versions: of the libraries that it ran with.
    :param steps: the rows of all ``metrics.csv``, with a column ``seed``.
    :param epochs: the rows of all ``epochs.csv``.
    :param test: metrics on the test set by seed, or None while the fit is not done.
    """

    folder: RunFolder
    config: FitConfig
    versions: dict[str, str]
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    test: pd.DataFrame | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """The table of :attr:`test`."""
        return self.folder.path / f"fit_{self.config.task}.csv"

    @property
    def seed_to_show(self) -> int:
        """The first that has a checkpoint, or else the first of the run."""
        return next((seed for seed in self.config.seeds if self.folder.seed(seed).has_checkpoint()), self.config.seed)


def read_run(path: Path) -> Run:
    """
    :raises ValueError: if there is no run, or nothing that says which one.
    """
    if not path.exists():
        raise ValueError(f"there is no folder {path}; python -m inference fit TASK --out {path} makes one")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: give the folder of a run, the --out of a fit")
    folder = RunFolder(path, writable=False)
    options = folder.read_config()
    if options is None:
        raise ValueError(f"{path} is not the folder of a run: it has no {folder.config.name}; give the --out of a fit")
    try:
        config = FitConfig.of_plain(options, folder.read_plugins())
    except MissingPluginError as error:
        raise ValueError(f"{folder.config}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder.config} is damaged ({error}): put a copy in its place") from error
    run = Run(folder, config, folder.read_versions())
    steps, epochs = [], []
    for seed in config.seeds:
        of_seed = folder.seed(seed)
        steps += [table.assign(seed=seed) for table in _tables(run, of_seed.metrics, "step", "epoch", "loss")]
        epochs += [table.assign(seed=seed) for table in _tables(run, of_seed.epochs, "epoch", "loss")]
    run.steps = pd.concat(steps, ignore_index=True) if steps else run.steps
    run.epochs = pd.concat(epochs, ignore_index=True) if epochs else run.epochs
    run.test = next((table.set_index("seed") for table in _tables(run, run.results, "seed")), None)
    return run


def load_fit(run: Run, seed: int) -> Fit:
    """
    The fit of one seed as its checkpoint has it, on the CPU, in torch's default dtype.

    :raises ValueError: if there is no checkpoint, or it is damaged or of another run.
    """
    path = run.folder.seed(seed).checkpoint
    if not run.folder.seed(seed).has_checkpoint():
        raise ValueError(f"no checkpoint in {path.parent}")
    try:
        config, state, problem = load_newest(path)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    if problem is not None and problem not in run.problems:
        run.problems.append(problem)
    changed = differences(config, run.config.of_seed(seed))
    if changed:
        raise ValueError(f"{path} belongs to another configuration: {changed}")
    task: Task = REGISTRY.tasks[run.config.task].make()
    fit = Fit(task, run.config.options(task), seed)
    fit.load_state_dict(state)
    return fit


def _tables(run: Run, path: Path, *columns: str) -> list[pd.DataFrame]:
    """The table in a list; an empty list where there is none, or where it is damaged, which is noted as a problem."""
    try:
        return [_read_table(path, columns)] if path.exists() else []
    except (ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        run.problems.append(f"{path} is damaged ({reason}): put a copy in its place")
        return []


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """
    Numbers, with these columns at least, the first of which counts up.

    :raises ValueError: on anything else.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A crash, or a fit that goes on while we read, leaves a last line that is not whole.
    table = pd.read_csv(io.StringIO("".join(line for line in lines if line.endswith("\n"))))
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    foreign = list(table.select_dtypes(exclude="number"))
    if foreign or table[list(columns)].isna().any(axis=None):
        raise ValueError(f"not a number in {', '.join(foreign or columns)}")
    counter = table[columns[0]]
    if not (counter.is_monotonic_increasing and counter.is_unique):
        raise ValueError(f"{columns[0]} does not count up")
    return table
