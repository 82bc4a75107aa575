"""The site is built without a warning, and its links lead somewhere."""

from pathlib import Path

import pytest

from tests.docs.links import broken_links

pytestmark = pytest.mark.slow


def test_links(site: Path) -> None:
    wrong, external = broken_links(site)
    assert not wrong
    assert "https://pyro.ai" in external


def test_every_name_of_a_room_is_in_the_reference(site: Path) -> None:
    import prob_moe

    for name, room in prob_moe._ROOM_OF.items():
        page = (site / "api" / f"{room}.html").read_text(encoding="utf-8")
        assert f'id="prob_moe.{room}.{name}"' in page, f"prob_moe.{room}.{name} has no entry in the reference"
