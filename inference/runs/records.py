"""Tables for machines."""

import json
from typing import Any

import pandas as pd


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has neither NaN nor infinity: they become null."""
    return json.loads(frame.to_json(orient="records"))
