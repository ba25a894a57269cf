"""What a page says that the machine has checked, held against the steps of the proof.

The first sentence of a page's section *Machine check* lists equations, each as a link:
`[module](path) checks [(2)](#eq-2) to [(9)](#eq-9) and [(11)](#eq-11).` The other sentences of the
section say how, and may name equations freely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.layout import page_of, read
from tests.support.ledger import ROOT

if TYPE_CHECKING:  # read by tests that import no theory
    from theory.tools.proof import Step

__all__ = ["claimed_equations", "claimed_in", "discharged_equations"]

SECTION = re.compile(r"^## Machine check\n+(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SENTENCE = re.compile(r"(.*?)\.(?=\s|\Z)", re.DOTALL)  # a full stop within a path ends nothing
ONE = r"\[\((\d+)\)\]\(#eq-\1\)"
OTHER = r"\[\((\d+)\)\]\(#eq-\2\)"
EQUATIONS = re.compile(f"{ONE}(?: to {OTHER})?")


def discharged_equations(steps: Iterable[Step]) -> set[int]:
    """The equations that the steps of a proof discharge."""
    return {step.equation for step in steps}


def claimed_equations(slug: str, root: Path = ROOT) -> set[int]:
    """The equations that a theorem's page lists as checked by machine."""
    return claimed_in(read(page_of(slug, root)))


def claimed_in(page: str) -> set[int]:
    """Those of the text of a page: the links in the first sentence of its *Machine check*.

    Raises:
        ValueError: there is no such section or sentence, or it lists none.
    """
    section = SECTION.search(page)
    sentence = SENTENCE.match(section[1]) if section else None
    found: set[int] = set()
    for one, other in EQUATIONS.findall(sentence[1] if sentence else ""):
        found.update(range(int(one), int(other or one) + 1))
    if not found:
        raise ValueError("the first sentence of 'Machine check' lists no equation")
    return found
