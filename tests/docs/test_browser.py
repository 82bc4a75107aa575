"""The site and the page of a run in a real browser, at the width of a phone, without a network."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from inference.cli import app
from tests.docs.looks import PATIENCE, findings

pytestmark = pytest.mark.slow


def test_every_page(site: Path, browser: Any) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    found = {str(page.relative_to(site)): findings(browser, page) for page in pages}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_search_finds_a_page(site: Path, browser: Any) -> None:
    assert findings(browser, site / "search.html", "?q=capacity") == []
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto((site / "search.html").as_uri() + "?q=exchange")
    tab.wait_for_selector("ul.search a")
    assert tab.locator("ul.search a[href*=gumbel_matching]").count() > 0
    tab.close()


def test_formulas_and_pictures_are_there(site: Path, browser: Any) -> None:
    """What the other test takes to be right is not right because nothing is there."""
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto((site / "proofs" / "gumbel_matching.html").as_uri())
    tab.wait_for_selector("mjx-container svg")
    assert tab.locator("mjx-container svg").count() > 50
    tab.goto((site / "06_from_routing_to_mixtures.html").as_uri())
    assert tab.locator("article img").count() > 3
    tab.close()


def test_the_page_of_a_run(tmp_path: Path, browser: Any) -> None:
    fit = ["fit", "piecewise", "--num-epochs", "3", "--num-seeds", "2", "--out", str(tmp_path / "run")]
    for command in (fit, ["show", str(tmp_path / "run")]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    page = tmp_path / "run" / "report.html"
    assert "<img" in page.read_text(encoding="utf-8")
    assert findings(browser, page) == []


def test_the_page_of_a_table(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "t.csv").write_text("a long name of a column,y\n" + "".join(f"{i},{i % 7}\n" for i in range(60)))
    fit = ["fit", "table", str(tmp_path / "t.csv"), "--target", "y", "--restarts", "3", "--out", str(tmp_path / "run")]
    for command in (fit, ["show", str(tmp_path / "run")]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert findings(browser, tmp_path / "run" / "report.html") == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>undefinedFunction()</script>", "exception: undefinedFunction is not defined"),
        ('<img src="http://127.0.0.1:9/x.png">', "a request leaves the machine: http://127.0.0.1:9/x.png"),
        ('<img src="lost.png">', "a picture is missing"),
        ('<div style="width: 500px">wide</div>', "pixels wide on a screen of 360"),
        ('<p style="font-size: 9px">small</p>', "text of 9 pixels is too small"),
        ('<span class="math">\\(x\\)</span>', "a formula is not drawn"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, browser: Any, body: str, said: str) -> None:
    head = '<!DOCTYPE html><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    page = tmp_path / "page.html"
    page.write_text(f"{head}<title>t</title><p>text</p>{body}", encoding="utf-8")
    assert any(said in wrong for wrong in findings(browser, page))
    page.write_text(f"{head}<title>t</title><p>text</p>", encoding="utf-8")
    assert findings(browser, page) == []
