"""The package stays small in its parts: its longest class, its widest constructor, its guesses.

And each of its modules has its tests where one looks for them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ledger import ROOT

PACKAGE = ROOT / "constructions"
MODULES = sorted(PACKAGE.rglob("*.py"))

LINES, PARAMETERS, DEFAULTS = 300, 11, 6
"""Of a class; of a constructor; uses of `getattr` with a default, outside of `stock`."""


def classes(path: Path) -> Iterator[ast.ClassDef]:
    """Every class of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node


def lines(node: ast.ClassDef) -> int:
    """How long a class is, its docstrings included."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(node: ast.ClassDef) -> int:
    """What a class is made from: the arguments of its constructor, or the fields of a dataclass."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return len(part.args.posonlyargs + part.args.args + part.args.kwonlyargs) - 1
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return 0
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(part.annotation) for part in fields)


def guesses(path: Path) -> int:
    """How often a module asks for an attribute that may not be there."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = [node for node in tree if isinstance(node, ast.Call)]
    return sum(
        isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) == 3
        for call in calls
    )


def test_no_class_is_longer_than_it_may_be() -> None:
    found = {f"{p.stem}.{c.name}": lines(c) for p in MODULES for c in classes(p)}
    assert {name: n for name, n in found.items() if n > LINES} == {}


def test_no_constructor_is_wider_than_it_may_be() -> None:
    found = {f"{p.stem}.{c.name}": parameters(c) for p in MODULES for c in classes(p)}
    assert {name: n for name, n in found.items() if n > PARAMETERS} == {}


def test_attributes_are_guessed_at_no_oftener_than_they_may_be() -> None:
    found = {str(p.relative_to(PACKAGE)): guesses(p) for p in MODULES if "stock" not in p.parts}
    assert sum(found.values()) <= DEFAULTS, {name: n for name, n in found.items() if n}


LONG = "class Long:\n" + "    x = 1\n" * LINES
WIDE = "class Wide:\n    def __init__(self, {}): pass\n".format(
    ", ".join(f"a{i}" for i in range(12))
)
FIELDS = "@dataclass(frozen=True)\nclass Fields:\n" + "".join(f"    a{i}: int\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "measure", "limit"),
    [
        (LONG, lines, LINES),
        (WIDE, parameters, PARAMETERS),
        (FIELDS, parameters, PARAMETERS),
    ],
    ids=["a long class", "a wide constructor", "a dataclass of many fields"],
)
def test_what_is_too_large_is_found(tmp_path: Path, text: str, measure: object, limit: int) -> None:
    path = tmp_path / "module.py"
    path.write_text(text, encoding="utf-8")
    (node,) = classes(path)
    assert callable(measure)
    assert measure(node) > limit


# Where the tests of a module are ------------------------------------------------------------------


def file_of(module: Path) -> Path:
    """The file of a module's tests, or the folder of those of its room."""
    inside = module.relative_to(PACKAGE)
    return ROOT / "tests" / "library" / inside.parent / f"test_{inside.stem}.py"


def test_map_from_modules_to_tests_names_files_that_are_there() -> None:
    stray = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "library").rglob("test_*.py")
        if path not in {file_of(module) for module in MODULES} | set(OF_ROOMS)
    ]
    assert stray == []


OF_ROOMS = [
    ROOT / "tests" / "library" / name
    for name in (
        "test_contract.py",  # all of the package through its door
        "test_refusals.py",  # what each argument does not take
        "test_beyond_one_machine.py",  # the layer over ranks
        "test_export.py",  # layers of any size: exported, compiled, in other runtimes
        "test_demo.py",  # demo/ and __main__
        "test_plotting.py",  # plotting/
        "evaluation/test_stock_kernels.py",  # fused and flex
        "encodings/test_completed.py",
        "encodings/test_farthest.py",
        "normalisers/test_completed.py",
    )
]
