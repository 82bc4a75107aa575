"""What is wrong with a page, as a browser sees it."""

from pathlib import Path
from typing import Any

PHONE = {"width": 360, "height": 740}
#: milliseconds; a machine that is busy with other things is no broken page
PATIENCE = 600_000
#: pixels; browsers have 16 for text
SMALLEST_TEXT = 13

#: every finding as a line; formulas are looked at after MathJax has drawn them
FINDINGS = """async () => {
    const found = [];
    if (window.MathJax) await MathJax.startup.promise;
    for (const math of document.querySelectorAll("span.math, div.math"))
        if (!math.querySelector("mjx-container")) found.push("a formula is not drawn: " + math.textContent);
    for (const error of document.querySelectorAll("[data-mml-node=merror]"))
        found.push("a formula is wrong: " + error.getAttribute("title"));
    for (const image of document.images) {
        image.loading = "eager";
        await image.decode().catch(() => found.push("a picture is missing: " + image.src.slice(0, 80)));
    }
    const width = document.documentElement.scrollWidth;
    if (width > innerWidth) found.push(`the page is ${width} pixels wide on a screen of ${innerWidth}`);
    // What one reads, not what stands beside it: captions of the menu and the footer are smaller.
    const content = document.querySelector("article") || document.body;
    const sizes = [...content.querySelectorAll("p, li")].filter(text => text.offsetWidth)
        .map(text => parseFloat(getComputedStyle(text).fontSize));
    if (Math.min(...sizes) < SMALLEST) found.push(`text of ${Math.min(...sizes)} pixels is too small to read`);
    return found;
}""".replace("SMALLEST", str(SMALLEST_TEXT))


def findings(browser: Any, page: Path, query: str = "") -> list[str]:
    """
    Open a page at a phone's width.

    :returns: what is wrong: errors and warnings on the console, exceptions, requests that leave the machine (which are
        refused), formulas and pictures that are not there, and what cannot be read.
    """
    found: list[str] = []
    with browser.new_context(viewport=PHONE) as context:
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        tab.on("console", lambda said: said.type in ("error", "warning") and found.append(f"console: {said.text}"))
        tab.on("pageerror", lambda error: found.append(f"exception: {error}"))

        def local_only(route: Any) -> None:
            if route.request.url.startswith(("file:", "data:", "blob:")):
                route.continue_()
            else:
                found.append(f"a request leaves the machine: {route.request.url}")
                route.abort()

        context.route("**/*", local_only)
        tab.goto(page.resolve().as_uri() + query)
        found += tab.evaluate(FINDINGS)
    return found
