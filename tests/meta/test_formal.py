"""The Coq development proves what the pages show, on the axioms that are committed, and no others.

What needs Coq runs with `--formal`; what can be read from the sources runs always. The second half
plants faults, each of which a check must find.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.support import formal
from tests.support.layout import declared_evidence
from tests.support.ledger import ROOT, theorems

STATED = sorted({slug for slug in theorems() if formal.parts(slug)})
every_source = pytest.mark.parametrize("name", formal.files(formal.FOLDER))
every_theorem = pytest.mark.parametrize("slug", sorted(theorems()))
every_stated_theorem = pytest.mark.parametrize("slug", STATED)


@pytest.fixture(scope="module")
def built() -> Path:
    """The compiled development."""
    formal.need_coq()
    return formal.build()


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A compiled development to plant a fault in."""
    return Path(shutil.copytree(built, tmp_path / "development"))


def plant(folder: Path, name: str, old: str, new: str) -> None:
    """Replace a text that stands once in a file of the development, and compile the file again."""
    path = folder / f"{name}.v"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    formal.compile_files(folder, [name])


def axioms(folder: Path, name: str) -> frozenset[str]:
    """The axioms of one proof."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return formal.audit(folder, [name], scratch=scratch)[name]


# What the sources say -----------------------------------------------------------------------------


@every_source
def test_source_assumes_nothing_unproven(name: str) -> None:
    text = (formal.FOLDER / f"{name}.v").read_text(encoding="utf-8")
    assert formal.forbidden(text) == []


def test_build_reads_every_source() -> None:
    assert sorted(formal.files(formal.FOLDER)) == sorted(
        path.stem for path in formal.FOLDER.glob("*.v")
    )


def test_statement_is_part_of_a_theorem() -> None:
    assert [n for n in formal.statements() if formal.slug_of(n, theorems()) is None] == []


def test_committed_axioms_are_of_the_statements() -> None:
    assert list(formal.committed_assumptions()) == list(formal.statements())


@every_theorem
def test_page_shows_the_statements_that_coq_proves(slug: str) -> None:
    assert formal.fence_findings(slug) == []


@pytest.mark.parametrize("slug", [slug for slug in STATED if slug in formal.statements()])
def test_statement_without_a_suffix_opens_with_the_sentence_of_the_page(slug: str) -> None:
    sentence = theorems()[slug].first_sentence
    assert f"{formal.statements()[slug].comment} ".startswith(f"{sentence} ")


@every_stated_theorem
def test_formal_theorem_has_one_formal_test(slug: str) -> None:
    declared = declared_evidence(ROOT / "tests")
    names = [name for name, pairs in declared.items() if (slug, "formal") in pairs]
    assert [name.partition("::")[0] for name in names] == [f"tests/theorems/test_{slug}.py"]


def test_overview_lists_every_statement_with_its_axioms() -> None:
    text = (ROOT / "docs" / "formal.md").read_text(encoding="utf-8")
    shown = formal.TABLE.search(text)
    assert shown is not None
    assert shown[0] == formal.table()


def test_overview_names_the_packages() -> None:
    text = (ROOT / "docs" / "formal.md").read_text(encoding="utf-8")
    assert f"\n{formal.INSTALL}\n" in text


def test_names_are_mapped_in_one_file() -> None:
    # An older name anywhere else would not compile with a later mathcomp.
    old = re.findall(r"^Notation \w+ := (\w+)", (formal.FOLDER / "names.v").read_text(), re.M)
    assert old
    for path in formal.FOLDER.glob("*.v"):
        if path.stem != "names":
            assert not set(old) & set(re.findall(r"\w+", path.read_text(encoding="utf-8"))), path


# What Coq says ------------------------------------------------------------------------------------


@pytest.mark.formal
def test_proof_rests_on_the_committed_axioms() -> None:
    formal.need_coq()
    assert dict(formal.audited()) == formal.committed_assumptions()


@pytest.mark.formal
def test_separate_checker_accepts_every_module(built: Path) -> None:
    done = formal.kernel_check(built)
    assert done.returncode == 0, done.stderr


# The checks find what is wrong --------------------------------------------------------------------

SLUG = "heads_that_shift_sum_to_a_convolution"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Lemma x : P.\nProof. Admitted.", ["Admitted"]),
        ("Axiom cheat : forall P, P.", ["Axiom"]),
        ("Parameters (a : nat) (b : nat).", ["Parameters"]),
        ("Conjecture c : P.", ["Conjecture"]),
        ("Proof. admit. Qed.", ["admit"]),
        ("Unset Guard Checking.", ["Unset Guard Checking"]),
        ("#[bypass_check(guard)] Fixpoint f := f.", ["bypass_check"]),
        ("Variable cheat : forall P, P.", ["Variable outside a section"]),
        ("Section S. End S.\nHypothesis h : P.", ["Hypothesis outside a section"]),
        ("Section S.\nVariable n : nat.\nEnd S.", []),
        ('(* no Axiom (* nor Admitted *) here *) Definition s := "Axiom".', []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_assuming_word_is_found_outside_comments(text: str, found: list[str]) -> None:
    assert formal.forbidden(text) == found


def proof(folder: Path) -> str:
    """The theorem as it stands in a folder's `proofs.v`, from its first word to its last."""
    text = (folder / "proofs.v").read_text(encoding="utf-8")
    start = text.index(f"Theorem {SLUG} :")
    return text[start : text.index("Qed.", start) + len("Qed.")]


@pytest.mark.formal
@pytest.mark.parametrize("word", ["Axiom", "Variable"])
def test_planted_assumption_is_found_by_the_audit(copy: Path, word: str) -> None:
    head = f"{word} cheat : forall P : Prop, P.\nTheorem {SLUG} : statements.{SLUG}."
    plant(copy, "proofs", proof(copy), f"{head}\nProof. exact: cheat. Qed.")
    assert axioms(copy, SLUG) == {"proofs.cheat"}


@pytest.mark.formal
def test_admitted_proof_is_found_by_the_audit(copy: Path) -> None:
    head = f"Theorem {SLUG} : statements.{SLUG}."
    plant(copy, "proofs", proof(copy), f"{head}\nProof. Admitted.")
    assert axioms(copy, SLUG) == {f"proofs.{SLUG}"}


@pytest.mark.formal
def test_proof_of_something_weaker_is_found_by_the_audit(copy: Path) -> None:
    head = f"Theorem {SLUG} : True -> True."
    plant(copy, "proofs", proof(copy), f"{head}\nProof. by []. Qed.")
    with pytest.raises(formal.Broken, match=r"has type"):
        axioms(copy, SLUG)


@pytest.mark.formal
def test_statement_without_a_proof_is_found_by_the_audit(copy: Path) -> None:
    plant(copy, "proofs", f"Theorem {SLUG} :", "Theorem other :")
    with pytest.raises(formal.Broken, match=rf"proofs\.{SLUG} was not found"):
        axioms(copy, SLUG)


@pytest.mark.formal
def test_damaged_module_is_refused_by_the_separate_checker(copy: Path) -> None:
    module = copy / "shifts.vo"
    data = bytearray(module.read_bytes())
    data[len(data) // 2] ^= 1
    module.write_bytes(bytes(data))
    assert formal.kernel_check(copy).returncode != 0


def test_weakened_statement_is_found_by_its_page(tmp_path: Path) -> None:
    folder = tmp_path / "formal"
    formal.copy_sources(formal.FOLDER, folder)
    assert formal.fence_findings(SLUG, folder=folder) == []
    path = folder / "statements.v"
    right = "  injective pos -> bijective f -> sees_window pos offset q ->\n"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(right, f"  Nh = 1%N ->\n{right}", 1), encoding="utf-8")
    assert formal.fence_findings(SLUG, folder=folder) == [
        f"the page of {SLUG} shows other statements than Coq proves"
    ]


def test_statement_that_no_page_can_show_is_refused(tmp_path: Path) -> None:
    (tmp_path / "statements.v").write_text("Definition loose : Prop :=\n  True.\n")
    with pytest.raises(ValueError, match=r"loose"):
        formal.statements(tmp_path)


# Without Coq --------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [False, True], ids=["a_skip", "a_failure_where_required"])
def test_absence_of_coq_names_the_packages(monkeypatch: pytest.MonkeyPatch, required: bool) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv(formal.REQUIRED, raising=False)
    if required:
        monkeypatch.setenv(formal.REQUIRED, "1")
    outcome = pytest.fail.Exception if required else pytest.skip.Exception
    with pytest.raises(outcome, match=r"apt-get install .*libcoq-flocq"):
        formal.check(SLUG)


@pytest.mark.formal
def test_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    formal.need_coq()
    monkeypatch.setattr(formal, "LIBRARIES", ("Flocq", "Gappa"))
    assert str(formal.absent_reason()).startswith("Coq lacks Gappa: apt-get install ")


def test_default_run_leaves_formal_tests_out(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers =\n  formal: x\n  thorough: x\n  evidence(slug, kind): x\n")
    pytester.makepyfile("""
import pytest

@pytest.mark.evidence("s", "formal")
def test_proven(): pass

@pytest.mark.formal
def test_development(): pass

def test_other(): pass
""")
    default = pytester.runpytest("-n", "0", "-p", "no:randomly")
    default.assert_outcomes(passed=1, deselected=2)
    pytester.runpytest("-n", "0", "--formal").assert_outcomes(passed=2, deselected=1)
