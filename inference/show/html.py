"""A report as one HTML file that needs nothing else: no network, no scripts, pictures inside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from inference.figure_style import WIDTH

#: pixels of a picture for an inch of the figure; a page of 60 rem shows 9 inches
DOTS_PER_INCH = 170

STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1.25rem; color: #222; background: #fff;
       font: 1rem/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin-top: 2.8rem; padding-top: .6rem; border-top: 1px solid #ddd; }
nav { color: #666; font-size: .9rem; } nav a { margin-right: .9rem; white-space: nowrap; }
a { color: #14568f; text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 1.2rem 0 1.8rem; } img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: #444; font-size: .95rem; margin-top: .4rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child, .words th, .words td { text-align: left; vertical-align: top; }
.wide { overflow-x: auto; } details { margin: 1rem 0; } summary { cursor: pointer; color: #14568f; }
.out { background: #fdf4e3; border-left: 4px solid #d99a1c; padding: .5rem .9rem; }
"""


@dataclass(frozen=True)
class Picture:
    """
    :param png: the file's content.
    :param caption: what there is to see, and what one should look for.
    :param width: as a share of the page's.
    """

    png: bytes
    caption: str
    width: float = 1.0

    def html(self) -> str:
        data = base64.b64encode(self.png).decode()
        caption = escape(" ".join(self.caption.split()))
        image = f'<img style="width: {100 * self.width:.0f}%" alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


@dataclass(frozen=True)
class Table:
    """Text in rows; a folded one shows its title until it is clicked."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""
    #: whether the cells are words, not numbers
    words: bool = False

    def html(self) -> str:
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in self.head)
        head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
        rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        table = f'<div class="wide{" words" * self.words}"><table>{head}<tbody>{rows}</tbody></table></div>'
        return f"<details><summary>{escape(self.folded)}</summary>{table}</details>" if self.folded else table


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    #: whether it says that something is not there
    missing: bool = False

    def html(self) -> str:
        return f'<p class="out">{escape(self.text)}</p>' if self.missing else f"<p>{escape(self.text)}</p>"


Content = list[Picture | Table | Text]


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    content: Content = field(default_factory=list)

    @property
    def name(self) -> str:
        """For links."""
        return "-".join(self.title.lower().split())


def picture(figure: Figure, caption: str) -> Picture:
    """Draw a figure and free it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    return Picture(buffer.getvalue(), caption, min(1.0, figure.get_figwidth() / WIDTH))


def page(title: str, sections: list[Section], origin: str = "") -> str:
    """
    :param origin: what it was made from, which a browser does not show.
    :returns: the HTML.
    """
    links = "".join(f'<a href="#{section.name}">{escape(section.title)}</a> ' for section in sections)
    body = "".join(
        f'<section><h2 id="{section.name}">{escape(section.title)}</h2>'
        f"{''.join(part.html() for part in section.content)}</section>\n"
        for section in sections
    )
    # The policy makes the browser itself refuse whatever is not in this file.
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{escape(origin)}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )
