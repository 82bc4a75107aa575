"""The registry: a shelf for every kind of entry."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from inference.registry.entries import (
    BaselineEntry,
    Entry,
    EstimatorEntry,
    ProcedureEntry,
    RuleEntry,
    TaskEntry,
)
from inference.registry.names import resolve, spelling

E = TypeVar("E", bound=Entry)

#: what a name may say after that of a procedure, rule or estimator
VARIANTS = ("unweighted", "balanced", "leave-one-out", "mixture bound", "guided bound", "pairs", "router marginals")
#: what has a name and is neither
OTHERS = (
    "exact gradient",
    "RL-R",
    "exact marginal",
    "EM",
    "IWAE",
    "unlimited rounding, mixture bound",
    "frozen router",
    "one expert",
    "one wide expert",
    "unordered set",
    "sum and sample",
)


class Shelf(Mapping[str, E], Generic[E]):
    """
    The entries of a kind by name, in the order in which they came.

    :param kind: their class.
    """

    def __init__(self, kind: type[E]) -> None:
        self.kind = kind
        self._entries: dict[str, E] = {}

    def __getitem__(self, name: str) -> E:
        """:raises UnknownNameError: with the nearest name, where there is none of the same spelling."""
        return self._entries[resolve(self.kind.kind, name, self._entries)]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: E) -> None:
        """
        :raises ValueError: if the name is taken.
        """
        taken = self._entries.get(entry.name)
        if taken is not None:
            by = f"the plugin {taken.origin}" if taken.origin else "a built-in one"
            raise ValueError(f"the name {entry.name!r} of a {entry.kind} is taken by {by}; give it another label")
        self._entries[entry.name] = entry


class Registry:
    """All that has a name, by kind."""

    def __init__(self) -> None:
        self.procedures = Shelf(ProcedureEntry)
        self.rules = Shelf(RuleEntry)
        self.estimators = Shelf(EstimatorEntry)
        self.baselines = Shelf(BaselineEntry)
        self.tasks = Shelf(TaskEntry)
        #: the plugin that adds at the moment
        self.origin = ""

    @property
    def shelves(self) -> tuple[Shelf[Any], ...]:
        return self.procedures, self.rules, self.estimators, self.baselines, self.tasks

    def add(self, *entries: Entry) -> None:
        """
        :raises ValueError: if a name is taken, or what is given is no entry, or makes another kind of thing.
        """
        for entry in entries:
            shelf = next((shelf for shelf in self.shelves if isinstance(entry, shelf.kind)), None)
            if shelf is None:
                kinds = ", ".join(shelf.kind.__name__ for shelf in self.shelves)
                raise ValueError(f"the registry takes {kinds}, got {entry!r}")
            entry.check()
            shelf.add(replace(entry, origin=self.origin))

    def label(self, name: object) -> str:
        """
        How tables and pictures call what has a name; one that is not known is its own label.

        >>> from inference.registry.builtin import REGISTRY
        >>> REGISTRY.label("gumbel-matching-unweighted")
        'Gumbel-Matching, unweighted'
        """
        text = str(name)
        for shelf in (self.procedures, self.rules):
            if text in shelf:
                return str(shelf[text].label)
        for variant in VARIANTS:
            procedure = text.removesuffix(f"-{spelling(variant)}")
            if procedure != text and procedure in self.procedures:
                return f"{self.procedures[procedure].label}, {variant}"
        return next((label for label in OTHERS if spelling(label) == text), text)

    @property
    def fitted(self) -> Mapping[str, ProcedureEntry | RuleEntry]:
        """Whatever ``fit`` can be asked to route by, by name: procedures, then rules."""
        rules = {name: entry for name, entry in self.rules.items() if "fit" in entry.commands}
        return {**self.procedures, **rules}

    def to_fit(self, name: str) -> ProcedureEntry | RuleEntry:
        """:raises UnknownNameError: where none of :attr:`fitted` has the name."""
        return self.fitted[resolve("procedure or rule", name, self.fitted)]

    # For plugins -----------------------------------------------------------------------------------------------------

    def state(self) -> list[dict[str, Entry]]:
        """:returns: all entries, for :meth:`restore`."""
        return [dict(shelf) for shelf in self.shelves]

    def restore(self, state: list[dict[str, Entry]]) -> None:
        """Forget what came after a :meth:`state`."""
        for shelf, entries in zip(self.shelves, state, strict=True):
            shelf._entries = dict(entries)
