"""How Sphinx makes the documentation site from the pages and notebooks of this folder: ``make docs``."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import prob_moe

project = "prob_moe"
author = "The prob_moe developers"
release = prob_moe.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["data", "figures"]

# Notebooks are shown with the outputs that they were committed with; `make test` executes them.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The reference: every name of a room's `__all__`, with the shapes that its docstring gives.
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Every reference between our own pages has to lead somewhere. What other projects document is not looked up: the site
# is made, and read, without a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!prob_moe)[a-z_]+\..*|Distribution|ScoreParts"),
    # In signatures: classes that a room keeps for itself.
    ("py:class", r"prob_moe\.\w+\.\w+\..*"),
]

html_theme = "furo"
html_title = f"prob_moe {release}"
html_copy_source = False
html_show_search_summary = False  # a browser reads no texts from files
html_show_copyright = False
# One file that holds MathJax whole and draws formulas as pictures: neither fonts nor anything else to be fetched.
_mathjax = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0], "static", "mathjax")
html_static_path = [str(_mathjax / "tex-svg-full.js")]
mathjax_path = "tex-svg-full.js"


# An asterisk before dimensions, as in (*batch, n, k) or (particles, *, n).
_STAR = re.compile(r"(?<![\w*])\*(?=[a-z_]*[,)])")


def _escape_shapes(app, what, name, obj, options, lines):
    """Let reST read the asterisks of shapes as what they are, outside of ``code``."""
    for index, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [_STAR.sub(r"\*", part) for part in parts[::2]]
        lines[index] = "``".join(parts)


def _public_bases(app, name, obj, options, bases):
    """Bases that have no page of their own give way to theirs."""
    bases[:] = dict.fromkeys(public for base in bases for public in _public(base))


def _public(base):
    room = ".".join(base.__module__.split(".")[:2])
    if not room.startswith("prob_moe") or base.__name__ in getattr(import_module(room), "__all__", ()):
        return [base]
    return [public for parent in base.__bases__ for public in _public(parent)]


def _skip_requests(app, what, name, obj, skip, options):
    """scikit-learn's ``set_fit_request`` and the like, which it documents itself."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app):
    app.connect("autodoc-skip-member", _skip_requests)
    app.connect("autodoc-process-docstring", _escape_shapes)
    app.connect("autodoc-process-bases", _public_bases)
