"""Reads what the sources say of a theorem, and lists what is wrong with it.

Every check returns its findings, a sentence each, so that the checks can be tested on wrong input.
No test file is imported: what it declares is read from its syntax.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the ledger reads declarations even where theory cannot be imported
    from theory.tools.proof import Step, Theorem

KINDS = ("symbolic", "exact", "property", "control", "formal")
NEEDED = ("symbolic", "control")
SECTIONS = [
    "Hypotheses",
    "Notation",
    "Derivation",
    "Machine check",
    "Construction",
    "Limits",
    "References",
]

Evidence = tuple[str, str]  # slug, kind


def page_of(slug: str, root: Path) -> Path:
    """Where the page of a theorem stands."""
    return root / "docs" / "theorems" / f"{slug}.md"


def tests_of(slug: str, root: Path) -> Path:
    """Where the tests of a theorem stand."""
    return root / "tests" / "theorems" / f"test_{slug}.py"


def read(path: Path) -> str:
    """The text of a file; nothing for a missing one, so that each check says what it wants."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# What the tests declare ---------------------------------------------------------------------------


def declared_evidence(tests: Path) -> dict[str, set[Evidence]]:
    """What each test function of a folder is evidence for, by node id without parameters."""
    return {
        name: evidence
        for path in sorted(tests.rglob("test_*.py"))
        for name, evidence in declarations(path, tests.parent)
    }


def declarations(path: Path, root: Path) -> Iterator[tuple[str, set[Evidence]]]:
    """Each test function of a file, with what its own, its class's and its module's markers say.

    Raises:
        ValueError: a marker does not name a slug and a known kind by two strings.
    """
    module = ast.parse(read(path), str(path))
    constants = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def visit(
        body: Sequence[ast.stmt], prefix: str, inherited: set[Evidence]
    ) -> Iterator[tuple[str, set[Evidence]]]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            evidence = inherited.union(*(_marked(d, constants) for d in node.decorator_list))
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                yield from visit(node.body, f"{prefix}::{node.name}", evidence)
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                yield f"{prefix}::{node.name}", evidence

    everywhere = _marked(constants["pytestmark"], constants) if "pytestmark" in constants else ()
    yield from visit(module.body, path.relative_to(root).as_posix(), set(everywhere))


def _marked(node: ast.expr, constants: Mapping[str, ast.expr]) -> Iterator[Evidence]:
    """The arguments of every `evidence(...)` in an expression, through the module's constants."""
    for child in ast.walk(node):
        match child:
            case ast.Name(id=name) if name in constants:
                others = {other: value for other, value in constants.items() if other != name}
                yield from _marked(constants[name], others)
            case ast.Call(func=ast.Attribute(attr="evidence"), args=arguments):
                match [constants.get(a.id, a) if isinstance(a, ast.Name) else a for a in arguments]:
                    case [ast.Constant(value=str(slug)), ast.Constant(value=kind)] if kind in KINDS:
                        yield slug, str(kind)
                    case _:
                        raise ValueError(
                            f"{ast.unparse(child)} on line {child.lineno}: evidence takes a slug "
                            f"and a kind, two strings; the kinds are {', '.join(KINDS)}"
                        )


# What a page holds --------------------------------------------------------------------------------

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE_OR_MATH = re.compile(r"(`+).+?\1|\$[^$]+\$", re.DOTALL)
ANCHOR = re.compile(r'^<a id="eq-(\d+)"></a>$', re.MULTILINE)
EQUATION = re.compile(r'^<a id="eq-(\d+)"></a>\n\n```math\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TAG = re.compile(r"\\tag\{(.*?)\}")
EQUATION_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]*)#eq-(\w+)\)")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
OUTSIDE = re.compile(r"[a-z]+:")


def prose(text: str) -> str:
    """A page without its code and its formulas."""
    return CODE_OR_MATH.sub("", FENCE.sub("", text))


def normalised(text: str) -> str:
    """A text with every run of white space as one blank."""
    return " ".join(text.split())


def equations(text: str) -> set[int]:
    """The numbered equations that can be linked to: anchor, blank line, fence with that tag."""
    return {int(n) for n, body in EQUATION.findall(text) if TAG.findall(body) == [n]}


# Checks of one theorem ----------------------------------------------------------------------------


def file_findings(theorem: Theorem, root: Path) -> list[str]:
    """The theorem has its module, its page and its tests."""
    module = root / "theory" / f"{theorem.slug}.py"
    needed = (module, page_of(theorem.slug, root), tests_of(theorem.slug, root))
    return [f"{path.relative_to(root)} is missing" for path in needed if not path.is_file()]


def title_findings(theorem: Theorem, root: Path) -> list[str]:
    """Page and module open with number and source, and the page with the title too."""
    name = f"{theorem.number} ({theorem.source})." if theorem.source else f"{theorem.number}."
    wanted = f"# {name} {theorem.title}"
    found = read(page_of(theorem.slug, root)).partition("\n")[0]
    module = ast.parse(read(root / "theory" / f"{theorem.slug}.py"))
    opens = (ast.get_docstring(module) or "").startswith(f"{name} ")
    return ([] if found == wanted else [f"the title line is {found!r}, not {wanted!r}"]) + (
        [] if opens else [f"the docstring of the module does not open with {name!r}"]
    )


def claim_findings(theorem: Theorem, root: Path) -> list[str]:
    """The page's first paragraph and the tests' docstring open with the claim's first sentence."""
    page = read(page_of(theorem.slug, root))
    module = ast.parse(read(tests_of(theorem.slug, root)))
    openings = {
        "the page": page.partition("\n")[2],
        "the docstring of the tests": ast.get_docstring(module) or "",
    }
    return [
        f"{place} does not open with {theorem.first_sentence!r}"
        for place, text in openings.items()
        if not f"{normalised(text)} ".startswith(f"{theorem.first_sentence} ")
    ]


def section_findings(theorem: Theorem, root: Path) -> list[str]:
    """The page has the fixed sections in the fixed order."""
    text = FENCE.sub("", read(page_of(theorem.slug, root)))
    found = re.findall(r"^## (.*)$", text, re.MULTILINE)
    return [] if found == SECTIONS else [f"the sections are {found}, not {SECTIONS}"]


def step_findings(theorem: Theorem, root: Path, steps: Iterable[Step]) -> list[str]:
    """Every step of the proof discharges an equation that the page numbers."""
    known = equations(read(page_of(theorem.slug, root)))
    return [
        f"step {step.name!r} discharges equation ({step.equation}), which the page lacks"
        for step in steps
        if step.equation not in known
    ]


def object_findings(theorem: Theorem) -> list[str]:
    """The theorem names objects, and every dotted name imports."""
    if not theorem.objects:
        return ["the theorem names no object"]
    return [f"{name} does not import" for name in theorem.objects if not _imports(name)]


def _imports(name: str) -> bool:
    """Whether a dotted name is a module, or attributes of one."""
    for cut in range(name.count("."), -1, -1):
        parts = name.split(".")
        module, attributes = ".".join(parts[: cut + 1]), parts[cut + 1 :]
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for attribute in attributes:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def evidence_findings(theorem: Theorem, root: Path) -> list[str]:
    """Every test of the theorem's file is evidence for it; a proof and a control are among them."""
    evidence = dict(declarations(tests_of(theorem.slug, root), root))
    idle = [name for name, pairs in evidence.items() if theorem.slug not in dict(pairs)]
    kinds = {kind for pairs in evidence.values() for slug, kind in pairs if slug == theorem.slug}
    return [f"{name} is evidence for nothing here" for name in idle] + [
        f"there is no {kind} evidence" for kind in NEEDED if kind not in kinds
    ]


# Checks of the whole ------------------------------------------------------------------------------


def orphan_findings(slugs: Iterable[str], root: Path) -> list[str]:
    """Every page and all evidence is about a stated theorem."""
    known = set(slugs)
    pages = sorted(path.stem for path in (root / "docs" / "theorems").glob("*.md"))
    return [f"docs/theorems/{slug}.md has no theorem" for slug in pages if slug not in known] + [
        f"{name} is evidence for {slug!r}, which is no theorem"
        for name, pairs in declared_evidence(root / "tests").items()
        for slug, _ in sorted(pairs)
        if slug not in known
    ]


def equation_findings(path: Path) -> list[str]:
    """Anchors are unique and tagged, tags are anchored, and every link to an equation arrives.

    A link to an equation of the same page reads as its number; one to another page may say more,
    `(3) of T2`, or only `T2`, but no other number.
    """
    text = path.read_text(encoding="utf-8")
    anchors, tags = Counter(ANCHOR.findall(text)), Counter(TAG.findall(text))
    whole = equations(text)
    found = [f"anchor eq-{n} stands {times} times" for n, times in anchors.items() if times > 1]
    found += [f"tag ({n}) stands {times} times" for n, times in tags.items() if times > 1]
    found += [
        f"equation ({n}) needs anchor, blank line and math fence with \\tag{{{n}}}"
        for n in anchors | tags
        if not n.isdigit() or int(n) not in whole
    ]
    for label, target, number in EQUATION_LINK.findall(text):
        page = path.parent / target if target else path
        if set(re.findall(r"\((\w+)\)", label)) - {number} or not (target or "(" in label):
            found.append(f"the link to eq-{number} reads {label!r}, not '({number})'")
        if not page.is_file():
            found.append(f"the link to {target}#eq-{number} leads to no page")
        elif not number.isdigit() or int(number) not in equations(page.read_text(encoding="utf-8")):
            found.append(f"the link to {target}#eq-{number} leads to no equation")
    return found


def link_findings(path: Path) -> list[str]:
    """Every relative link leads to a file or a folder."""
    targets = LINK.findall(prose(path.read_text(encoding="utf-8")))
    return [
        f"the link to {target} leads nowhere"
        for target in targets
        if not OUTSIDE.match(target) and not (path.parent / target).exists()
    ]
