"""What the check of the site's links finds."""

from pathlib import Path

import pytest

from tests.docs.links import broken_links, main

GOOD = '<h1 id="top">A</h1><a href="sub/b.html#there">b</a><a href="#top">up</a><img src="data:image/png;base64,xx">'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(GOOD + '<a href="https://example.org/x">x</a>')
    (tmp_path / "sub" / "b.html").write_text('<p id="there"><a href="../index.html">a</a>')
    return tmp_path


def test_a_good_site(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert broken_links(site) == ([], {"https://example.org/x": {"index.html"}})
    assert main(site) == 0
    assert "0 broken links; 1 links elsewhere" in capsys.readouterr().out
    assert (site / "external_links.txt").read_text() == "https://example.org/x  (index.html)\n"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ('<a href="c.html">', "c.html, which is no file"),
        ('<a href="sub">', "sub, which is no file"),
        ('<a href="sub/b.html#nowhere">', "sub/b.html#nowhere, which is no anchor"),
        ('<a href="#nowhere">', "#nowhere, which is no anchor"),
        ('<img src="lost.png">', "lost.png, which is no file"),
        ('<script src="https://cdn.example.org/m.js"></script>', "loads https://cdn.example.org/m.js from elsewhere"),
        ('<link rel="stylesheet" href="//fonts.example.org/f.css">', "loads //fonts.example.org/f.css from elsewhere"),
    ],
)
def test_what_is_broken(site: Path, added: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (site / "index.html").open("a") as file:
        file.write(added)
    assert main(site) == 1
    assert said in capsys.readouterr().err


def test_no_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path) == 2
    assert "no index.html" in capsys.readouterr().err
