"""The built site, and a browser to look at it; tests that lack one of them are skipped, and say what is missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.looks import PATIENCE

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
#: as in the Makefile
STRICT = ["-b", "html", "--quiet", "--fresh-env", "--fail-on-warning", "--nitpicky"]
#: nothing of its own goes out, and no setting of the user comes in
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the built pages lie: in ``PROB_MOE_SITE`` if that is set, else they are built."""
    if made := os.environ.get("PROB_MOE_SITE"):
        assert (Path(made) / "index.html").is_file(), f"no site in PROB_MOE_SITE={made}: run `make docs`"
        return Path(made).resolve()
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package, reason=f"{package} is not installed: the site needs the extra prob_moe[docs]")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", *STRICT, "-d", str(out / "doctrees"), str(NOTEBOOKS), str(out / "html")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out / "html"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, as Debian packs it, driven by playwright; it starts with an empty profile of its own."""
    reason = "playwright is not installed: the browser's tests need the extra prob_moe[docs]"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, headless=True, args=FLAGS, timeout=PATIENCE)
        yield chromium
        chromium.close()
