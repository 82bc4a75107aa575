"""
Whether the links of a built site lead somewhere: ``python -m tests.docs.links results/docs``.

Every link and anchor within the site has to exist, and no page may load anything from elsewhere. What links to other
sites is not followed, as there may be no network; it is listed in ``external_links.txt`` of the site.
"""

import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: what a browser loads by itself, and by which attribute; of ``link`` see :meth:`Page.loads`
LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif given.get(LOADED.get(tag, "")) and self.loads(tag, given):
            self.loaded.add(given[LOADED[tag]])

    def loads(self, tag: str, given: dict[str, str]) -> bool:
        """Links to other pages for programs (next, search) are links."""
        return tag != "link" or bool({"stylesheet", "icon", "preload"} & set(given.get("rel", "").split()))


def broken_links(site: Path) -> tuple[list[str], dict[str, set[str]]]:
    """:returns: a line for everything that is wrong, and the pages of each external link."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    wrong = []
    external: dict[str, set[str]] = defaultdict(set)
    for path, page in pages.items():
        name = str(path.relative_to(site.resolve()))
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    wrong.append(f"{name} loads {link} from elsewhere")
                external[link].add(name)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                wrong.append(f"{name} links to {link}, which is no file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{name} links to {link}, which is no anchor of that page")
    return wrong, dict(external)


def main(site: Path) -> int:
    if not (site / "index.html").is_file():
        print(f"no site in {site}: it has no index.html", file=sys.stderr)
        return 2
    wrong, external = broken_links(site)
    lines = [f"{link}  ({', '.join(sorted(pages))})\n" for link, pages in sorted(external.items())]
    (site / "external_links.txt").write_text("".join(lines), encoding="utf-8")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    print(f"{site}: {len(wrong)} broken links; {len(external)} links elsewhere, not followed: external_links.txt")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
