"""``python -m inference``: the programs of this repository."""

from inference.cli import app

app(prog_name="python -m inference")
