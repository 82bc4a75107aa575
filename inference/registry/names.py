"""Names that one types: the same spelling everywhere, and the nearest one for a typo."""

import difflib
import re
from collections.abc import Iterable


def spelling(name: str) -> str:
    """
    How a name is typed: small letters, and hyphens for what stands between words.

    >>> spelling("Gumbel-Matching, unweighted")
    'gumbel-matching-unweighted'
    >>> spelling("σ-MoE")
    'sigma-moe'
    """
    return re.sub(r"[\s,-]+", "-", name.strip().lower().replace("σ", "sigma"))


def nearest(name: str, known: Iterable[str]) -> str:
    """:returns: the known name that a typo may have meant, in words for the end of a message; or nothing."""
    by_spelling = {spelling(other): other for other in known}
    found = difflib.get_close_matches(spelling(name), by_spelling, n=1, cutoff=0.6)
    return f"; did you mean {by_spelling[found[0]]}?" if found else ""


class UnknownNameError(ValueError):
    """Nothing of a kind has a name; the message says which is nearest."""


def resolve(kind: str, name: str, known: Iterable[str]) -> str:
    """
    :param kind: what it is a name of, for the message.
    :returns: the known name of the same spelling.
    :raises UnknownNameError: with the nearest one, if there is none.

    >>> resolve("arm", "gumbel-matching", ["skip", "Gumbel-Matching"])
    'Gumbel-Matching'
    """
    known = list(known)
    found = {spelling(other): other for other in known}.get(spelling(name))
    if found is None:
        meant, listed = nearest(name, known), ", ".join(map(spelling, known))
        raise UnknownNameError(f"unknown {kind} {name!r}{meant or ';'} known are {listed}")
    return found
