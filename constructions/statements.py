"""What an object given for a part must have, and what it may state beside: looked at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")

LIKENESS = 0.8
"""From which `difflib.SequenceMatcher.ratio` on a name is taken for a misspelt statement."""

SHORTEST = 5
"""Letters of the shortest statement that another name is compared with: "at" is like too many."""


@dataclass(frozen=True)
class Statement:
    """An attribute that an object may have.

    Args:
        accepted: what it may be, in words.
        accepts: whether it may be that.
    """

    accepted: str
    accepts: Callable[[object], bool]


FLAG = Statement("True or False", lambda value: isinstance(value, bool))
METHOD = Statement("a method", callable)


def has_methods(given: object, names: Iterable[str]) -> bool:
    """Whether it is an object, and no class, that has all of the methods."""
    return not isinstance(given, type) and all(
        callable(getattr(given, name, None)) for name in names
    )


def stated(given: object, name: str, default: T) -> T:
    """What an object states, or the default. Its type has been checked at the door."""
    value: T = getattr(given, name, default)
    return value


def check_statements(
    argument: str, given: object, statements: Mapping[str, Statement], known: Iterable[str]
) -> None:
    """Raise unless each statement of an object is of its type, and none is misspelt.

    Args:
        argument: the name of the argument, for the message.
        given: the object.
        statements: what it may state, by name.
        known: names that are of the contract, and like none that is misspelt.

    Raises:
        TypeError: a statement of another type; a public name that is like that of a statement.
    """
    names = dir(given)
    for name, statement in statements.items():
        # Not by `hasattr` alone, which would take a property that fails for one that is not there.
        if name in names or hasattr(given, name):
            value = getattr(given, name)
            if not statement.accepts(value):
                raise TypeError(
                    f"{argument} is {given!r}, whose {name} is {value!r}; accepted: "
                    f"{statement.accepted}"
                )
    others = {*names}.difference(statements, known)
    long_enough = [name for name in statements if len(name) >= SHORTEST]
    for name in sorted(name for name in others if not name.startswith("_")):
        for meant in get_close_matches(name.lower(), long_enough, n=1, cutoff=LIKENESS):
            raise TypeError(
                f"{argument} is {given!r}, which states {name!r}; accepted: {meant!r}, or a name "
                "less like it for something else"
            )
