"""The site is built without a warning, and its links lead somewhere."""

from pathlib import Path

import pytest

import prob_moe
from tests.docs.links import broken_links

pytestmark = pytest.mark.slow


def test_links(site: Path) -> None:
    wrong, external = broken_links(site)
    assert not wrong
    assert "https://pyro.ai" in external


def test_every_name_of_a_room_is_in_the_reference(site: Path) -> None:
    for name, room in prob_moe._rooms().items():
        page = (site / "api" / f"{room.removeprefix('prob_moe.')}.html").read_text(encoding="utf-8")
        assert f'id="{room}.{name}"' in page, f"{room}.{name} has no entry in the reference"
