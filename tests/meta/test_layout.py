"""Every theorem stands in its module, its page and its tests, and they agree.

The checks live in `tests/support/layout.py`. The second half of this file hands each of them a
repository that is wrong in one way, which it must find.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import layout
from tests.support.ledger import ROOT
from theory import theorems
from theory.tools.proof import Step, Theorem

MODULES = {module.THEOREM.slug: module for module in theorems()}
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}

every_theorem = pytest.mark.parametrize(
    "theorem", [module.THEOREM for module in MODULES.values()], ids=list(MODULES)
)
every_page = pytest.mark.parametrize("page", list(PAGES.values()), ids=list(PAGES))


def report(findings: list[str]) -> None:
    """Fail with every finding in full."""
    assert not findings, "\n".join(["", *findings])


@every_theorem
def test_theorem_has_module_page_and_tests(theorem: Theorem) -> None:
    report(layout.file_findings(theorem, ROOT))


@every_theorem
def test_page_opens_with_number_source_and_title(theorem: Theorem) -> None:
    report(layout.title_findings(theorem, ROOT))


@every_theorem
def test_claim_opens_the_page_and_the_tests(theorem: Theorem) -> None:
    report(layout.claim_findings(theorem, ROOT))


@every_theorem
def test_page_has_the_fixed_sections_in_order(theorem: Theorem) -> None:
    report(layout.section_findings(theorem, ROOT))


@every_theorem
def test_step_of_the_proof_discharges_a_numbered_equation(theorem: Theorem) -> None:
    report(layout.step_findings(theorem, ROOT, MODULES[theorem.slug].prove()))


@every_theorem
def test_object_that_the_theorem_names_imports(theorem: Theorem) -> None:
    report(layout.object_findings(theorem))


@every_theorem
def test_theorem_has_a_proof_a_control_and_no_idle_test(theorem: Theorem) -> None:
    report(layout.evidence_findings(theorem, ROOT))


def test_page_and_evidence_are_about_a_stated_theorem() -> None:
    report(layout.orphan_findings(MODULES, ROOT))


@every_page
def test_equation_is_anchored_tagged_and_linked_by_its_number(page: Path) -> None:
    report(layout.equation_findings(page))


@every_page
def test_relative_link_leads_to_a_file(page: Path) -> None:
    report(layout.link_findings(page))


# The checks find what is wrong --------------------------------------------------------------------

THEOREM = Theorem(
    slug="sums_commute",
    number="T4",
    source="Lemma 7",
    title="Sums commute",
    gist="order does not matter",
    claim="A sum of two numbers does not depend on their order. So neither does a longer one.",
    hypotheses=("the numbers are integers",),
    notation={"a, b": "integers"},
    proof_idea="Count.",
    references=("arXiv:1911.03584",),
    objects=("theory.tools.proof.Step",),
)

MODULE = '"""T4 (Lemma 7). Sums commute."""\n'

PAGE = """# T4 (Lemma 7). Sums commute

A sum of two numbers does not
depend on their order. So neither does a longer one.

## Hypotheses

## Notation

## Derivation

<a id="eq-1"></a>

```math
a + b = b + a \\tag{1}
```

By [(1)](#eq-1), and [(1)](sums_commute.md#eq-1) once more, which is
[(1) of T4](sums_commute.md#eq-1), or [T4](sums_commute.md#eq-1).

## Machine check

See [the proof](../../theory/sums_commute.py).

## Construction

```python
## a comment, not a section
```

## Limits

## References
"""

TESTS = '''"""A sum of two numbers does not depend on their order."""

import pytest

SLUG = "sums_commute"
symbolic = pytest.mark.evidence(SLUG, "symbolic")


@symbolic
def test_proof_runs():
    pass


@pytest.mark.evidence(SLUG, "control")
class TestControls:
    def test_difference_is_rejected(self):
        pass
'''

FILES = {
    "theory/sums_commute.py": MODULE,
    "docs/theorems/sums_commute.md": PAGE,
    "tests/theorems/test_sums_commute.py": TESTS,
}


def all_findings(root: Path) -> list[str]:
    """Every check of a repository that states the theorem above and proves one step."""
    found = layout.file_findings(THEOREM, root) + layout.orphan_findings([THEOREM.slug], root)
    if found:
        return found
    checks: list[Callable[[Theorem, Path], list[str]]] = [
        layout.title_findings,
        layout.claim_findings,
        layout.section_findings,
        layout.evidence_findings,
    ]
    page = layout.page_of(THEOREM.slug, root)
    return [
        *(finding for check in checks for finding in check(THEOREM, root)),
        *layout.step_findings(THEOREM, root, [Step("both orders count the same", 1)]),
        *layout.equation_findings(page),
        *layout.link_findings(page),
    ]


def write(root: Path, files: dict[str, str]) -> None:
    """Write a repository."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def test_sound_repository_has_no_findings(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    assert all_findings(tmp_path) == []


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, {other: text for other, text in FILES.items() if other != name})
    assert all_findings(tmp_path) == [f"{name} is missing"]


WRONG_PAGE = {
    "wrong_number": ("# T4", "# T5", "the title line is"),
    "missing_source": (" (Lemma 7)", "", "the title line is"),
    "other_claim": ("does not\ndepend", "may\ndepend", "the page does not open with"),
    "claim_that_goes_on": ("order. So", "order, so", "the page does not open with"),
    "claim_comes_second": ("\n\nA sum", "\n\nNote.\n\nA sum", "the page does not open with"),
    "missing_section": ("## Limits\n", "", "the sections are"),
    "swapped_sections": ("Limits\n\n## References", "References\n\n## Limits", "the sections are"),
    "step_without_equation": ("eq-1", "eq-2", "step 'both orders count the same' discharges"),
    "anchor_without_blank_line": ("</a>\n\n", "</a>\n", "equation (1) needs anchor"),
    "anchor_without_tag": ("\\tag{1}", "", "equation (1) needs anchor"),
    "anchor_with_other_tag": ("\\tag{1}", "\\tag{2}", "equation (2) needs anchor"),
    "tag_without_anchor": ('<a id="eq-1"></a>\n', "", "equation (1) needs anchor"),
    "tag_that_is_no_number": ("\\tag{1}", "\\tag{*}", "equation (*) needs anchor"),
    "anchor_twice": ('<a id="eq-1">', '<a id="eq-1"></a>\n<a id="eq-1">', "anchor eq-1 stands 2"),
    "tag_twice": ("\\tag{1}", "\\tag{1} \\tag{1}", "tag (1) stands 2 times"),
    "link_without_number": ("[(1)](#", "[there](#", "the link to eq-1 reads 'there', not '(1)'"),
    "link_with_other_number": ("[(1)](#", "[(2)](#", "the link to eq-1 reads '(2)'"),
    "link_with_other_number_elsewhere": ("[(1)](s", "[T4, (2)](s", "the link to eq-1 reads"),
    "link_to_no_equation": (
        "[(1)](#eq-1)",
        "[(9)](#eq-9)",
        "the link to #eq-9 leads to no equation",
    ),
    "link_to_no_page": (
        "(sums_commute.md",
        "(gone.md",
        "the link to gone.md#eq-1 leads to no page",
    ),
    "link_to_no_file": ("../../theory", "../theory", "the link to ../theory/sums_commute.py leads"),
}
WRONG_TESTS = {
    "other_docstring": ('"""A sum', '"""The sum', "the docstring of the tests does not open with"),
    "no_proof": ("@symbolic\n", "", "there is no symbolic evidence"),
    "idle_test": (
        "@symbolic\n",
        "",
        "tests/theorems/test_sums_commute.py::test_proof_runs is evidence for no",
    ),
    "no_control": ('"control")\n', '"exact")\n', "there is no control evidence"),
    "other_slug": (
        'SLUG = "sums',
        'SLUG = "products',
        "tests/theorems/test_sums_commute.py::test_proof_runs is",
    ),
}


def check_replacement(root: Path, name: str, right: str, wrong: str, finding: str) -> None:
    """One replacement in one file of the sound repository leads to the finding."""
    assert right in FILES[name]
    write(root, FILES | {name: FILES[name].replace(right, wrong, 1)})
    found = all_findings(root)
    assert any(one.startswith(finding) for one in found), found


@pytest.mark.parametrize(("right", "wrong", "finding"), WRONG_PAGE.values(), ids=WRONG_PAGE)
def test_wrong_page_is_found(tmp_path: Path, right: str, wrong: str, finding: str) -> None:
    check_replacement(tmp_path, "docs/theorems/sums_commute.md", right, wrong, finding)


@pytest.mark.parametrize(("right", "wrong", "finding"), WRONG_TESTS.values(), ids=WRONG_TESTS)
def test_wrong_tests_are_found(tmp_path: Path, right: str, wrong: str, finding: str) -> None:
    check_replacement(tmp_path, "tests/theorems/test_sums_commute.py", right, wrong, finding)


def test_module_without_its_number_is_found(tmp_path: Path) -> None:
    right, finding = (
        "T4 (Lemma 7).",
        "the docstring of the module does not open with 'T4 (Lemma 7).'",
    )
    check_replacement(tmp_path, "theory/sums_commute.py", right, "Lemma 7.", finding)


def test_evidence_for_no_theorem_is_found(tmp_path: Path) -> None:
    write(tmp_path, FILES | {"tests/test_stray.py": TESTS.replace(THEOREM.slug, "products")})
    found = all_findings(tmp_path)
    wanted = "tests/test_stray.py::test_proof_runs is evidence for 'products', which is no theorem"
    assert wanted in found


def test_orphan_page_is_found(tmp_path: Path) -> None:
    write(tmp_path, FILES | {"docs/theorems/lost.md": PAGE})
    assert all_findings(tmp_path) == ["docs/theorems/lost.md has no theorem"]


@pytest.mark.parametrize(
    "arguments",
    ['"sums_commute"', '"sums_commute", "vague"', "THEOREM.slug, symbolic", "4, 'exact'"],
    ids=["one_argument", "unknown_kind", "not_a_literal", "not_a_string"],
)
def test_marker_that_cannot_be_read_is_refused(tmp_path: Path, arguments: str) -> None:
    write(tmp_path, FILES | {"tests/test_it.py": TESTS.replace('SLUG, "control"', arguments)})
    with pytest.raises(ValueError, match=r"evidence takes a slug and a kind"):
        layout.declared_evidence(tmp_path / "tests")


def test_marker_counts_on_function_class_module_and_parameter(tmp_path: Path) -> None:
    text = """
import pytest
control = pytest.mark.evidence("s", "control")
pytestmark = [pytest.mark.evidence("s", "exact")]

@pytest.mark.parametrize("n", [pytest.param(1, marks=control), 2])
def test_function(n): pass

class TestClass:
    @pytest.mark.evidence("s", "formal")
    def test_method(self): pass

def helper(): pass
"""
    write(tmp_path, {"tests/test_s.py": text})
    assert layout.declared_evidence(tmp_path / "tests") == {
        "tests/test_s.py::test_function": {("s", "exact"), ("s", "control")},
        "tests/test_s.py::TestClass::test_method": {("s", "exact"), ("s", "formal")},
    }


@pytest.mark.parametrize(
    "name", ["gone", "theory.gone", "theory.tools.proof.Gone", "theory.tools.proof.Step.x"]
)
def test_object_that_does_not_import_is_found(name: str) -> None:
    wrong = Theorem(**{**vars(THEOREM), "objects": (name,)})
    assert layout.object_findings(wrong) == [f"{name} does not import"]


def test_theorem_about_no_object_is_found() -> None:
    wrong = Theorem(**{**vars(THEOREM), "objects": ()})
    assert layout.object_findings(wrong) == ["the theorem names no object"]


def test_code_and_formulas_hold_no_links() -> None:
    text = "a `[x](code.md)` b $[x](math.md)$ c\n```python\n[x](fence.md)\n```\n[x](real.md#part)"
    assert layout.LINK.findall(layout.prose(text)) == ["real.md"]
