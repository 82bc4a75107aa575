"""What the commands leave in a folder, and that none of it is lost to another command, or to the same one once more."""

from collections.abc import Iterable
from pathlib import Path

from inference.runs.run_folder import RunFolder

#: files of the commands that share a folder, as patterns; those of a fit are in :mod:`inference.runs.run_folder`
OUTPUTS = {
    "study": (
        *(f"{name}.csv" for name in ("seeds", "settings", "arms", "contrasts", "serving", "rows")),
        "report.md",
        *(f"{name}.png" for name in ("pieces", "serving", "summary", "claims", "robustness", "curves", "fits")),
    ),
    "study routing": ("routing.csv", "routing.md"),
    "fit table": ("table.json",),
    "gradients": ("gradients.csv", "gradients_variance.png", "gradients_bias.png", "expected_gradients.csv"),
    "likelihood": ("likelihood.json", "likelihood.png"),
    "posterior": (
        "posterior_*.nc",
        *(f"posterior_{name}" for name in ("summary.csv", "loo.csv", "traces.png", "predictive.png", "loo.png")),
    ),
}
#: finished runs of a study, which are no result yet: the same study goes on with them
STUDY_RUNS = "runs/*.json"


def output_folder(path: Path, files: Iterable[str], *, overwrite: bool, kept: str = "") -> Path:
    """
    The folder of a command that is not a fit, looked at before the work is done.

    :param files: what the command is about to write, as names or patterns.
    :param overwrite: whether it may replace them.
    :param kept: what stays whatever happens, for the message.
    :raises ValueError: if the folder cannot be made or written to, is that of a fit, or holds any of the files and must
        not be overwritten.
    """
    if RunFolder(path).holds_run():
        raise ValueError(f"{path} holds a run of fit: give another --out")
    found = sorted(file.name for pattern in files for file in path.glob(pattern))
    if found and not overwrite:
        raise ValueError(f"{path} holds {', '.join(found)}: give --overwrite to replace them, or another --out{kept}")
    return path


def check_not_of_another_command(path: Path) -> None:
    """
    A fit has a folder of its own.

    :raises ValueError: if another command has left its results there.
    """
    for command, patterns in (OUTPUTS | {"study": (STUDY_RUNS, *OUTPUTS["study"])}).items():
        found = next((file for pattern in patterns for file in sorted(path.glob(pattern))), None)
        if found is not None:
            raise ValueError(f"{path} holds results of {command} ({found.relative_to(path)}): give another --out")


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """
    :raises ValueError: if a file is there already and must not be overwritten.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give --overwrite to replace it, or another --out")
