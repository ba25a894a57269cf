"""What is public is what a door exports: pages, theorems and return types name nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ledger import ROOT
from theory import theorems

DOORS = (
    "constructions",
    "constructions.certificate",
    "constructions.encodings",
    "constructions.heads",
    "constructions.normalisers",
    "constructions.stock",
)
"""All but `stock` are imported with the package, none with another library.

`plotting` needs matplotlib, and is imported when it is asked for.
"""

LAZY = ("constructions.filters", "constructions.plotting", "constructions.stock")

PUBLIC = {door: set(importlib.import_module(door).__all__) for door in DOORS}
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/theorems/*.md")])
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def is_public(module: str, name: str) -> bool:
    """Whether a door exports a name."""
    if f"{module}.{name}" in (*LAZY, *DOORS):
        return True
    if module in LAZY:
        return name in importlib.import_module(module).__all__
    return name in PUBLIC.get(module, ())


def undue_imports(code: str) -> list[str]:
    """Imports of the package by another way than through a door."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [n for n in names if n.startswith("constructions.") and n not in LAZY]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("constructions"):
            module = str(node.module)
            found += [
                f"{module}.{alias.name}"
                for alias in node.names
                if not is_public(module, alias.name)
            ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_imports_from_doors_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [undue for code in FENCE.findall(text) for undue in undue_imports(code)] == []


@pytest.mark.parametrize(
    "code",
    [
        "from constructions.layer.attention import MultiHeadSelfAttention",
        "from constructions.encodings.scalar import Scalar",
        "import constructions.formats",
        "from constructions import formats",
    ],
)
def test_import_past_a_door_is_found(code: str) -> None:
    assert undue_imports(code)


@pytest.mark.parametrize("theorem", [m.THEOREM for m in theorems()], ids=lambda t: t.slug)
def test_theorem_names_objects_of_doors_alone(theorem: Any) -> None:
    for name in theorem.objects:
        doors = [door for door in DOORS if name.startswith(f"{door}.")]
        assert any(name[len(door) + 1 :].split(".")[0] in PUBLIC[door] for door in doors), name


# Types that are returned --------------------------------------------------------------------------


def named(door: str, name: str) -> Any:
    """What a door exports by a name; None where the library that it needs is not here."""
    try:
        return getattr(importlib.import_module(door), name, None)
    except ImportError:
        return None


def returned(annotation: object) -> Iterator[type]:
    """The classes of the package in an annotation."""
    if isinstance(annotation, type) and annotation.__module__.startswith("constructions"):
        yield annotation
    for part in typing.get_args(annotation):
        yield from returned(part)


def public_functions() -> Iterator[tuple[str, Any]]:
    """Every public function, and every public method and property of a public class."""
    for door, names in PUBLIC.items():
        for name in sorted(names):
            found = named(door, name)
            if inspect.isfunction(found):
                yield f"{door}.{name}", found
            elif inspect.isclass(found):
                for attribute, member in vars(found).items():
                    if attribute.startswith("_"):
                        continue
                    function = member.fget if isinstance(member, property) else member
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function):
                        yield f"{door}.{name}.{attribute}", function


FUNCTIONS = dict(public_functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_type_that_is_returned_is_exported(name: str) -> None:
    exported = {id(named(door, name)) for door in PUBLIC for name in PUBLIC[door]}
    hints = typing.get_type_hints(FUNCTIONS[name])
    missing = [c.__qualname__ for c in returned(hints.get("return")) if id(c) not in exported]
    assert missing == []


def test_doors_are_attributes_after_import_constructions() -> None:
    doors = [door.partition(".")[2] for door in DOORS[1:]]
    code = f"import constructions; print(*[hasattr(constructions, n) for n in {doors}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.split() == ["True"] * len(doors), found.stderr
