"""Runs of the benchmarks in files of pytest-benchmark."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def load(path: Path) -> tuple[list[Mapping[str, Any]], str]:
    """
    :returns: the records of a run that belong to the table, and the name of its processor.
    :raises SystemExit: if it is no such file.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        records = [record for record in run["benchmarks"] if "what" in record["extra_info"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no run of make bench: {type(error).__name__}: {error}") from None
    return records, run["machine_info"].get("cpu", {}).get("brand_raw", "unknown processor")
