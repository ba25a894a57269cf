"""Builds the Coq development of `theory/formal` once, and lists what is wrong with it.

`theory/formal/statements.v` states a part of a theorem by a definition named by the theorem's slug,
with a suffix if there are several, and `proofs.v` proves it under the same name. What `proofs.v`
says of itself is not trusted: the audit is a file of its own, in which every proof must have the
type that `statements.v` says and rest on the axioms that `assumptions.txt` says, no more and no
fewer.

`python -m tests.support.formal` prints what is proven, on which axioms; `--write` also copies the
statements to the pages.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.layout import page_of, read
from tests.support.ledger import ROOT, theorems

__all__ = [
    "Missing",
    "Statement",
    "absent_reason",
    "audit",
    "build",
    "check",
    "committed_assumptions",
    "fence_findings",
    "forbidden",
    "kernel_check",
    "statements",
]

FOLDER = ROOT / "theory" / "formal"
PACKAGES = (
    "coq",
    "libcoq-mathcomp-ssreflect",
    "libcoq-mathcomp-algebra",
    "libcoq-mathcomp-algebra-tactics",
    "libcoq-mathcomp-zify",
    "libcoq-mathcomp-analysis",
    "libcoq-flocq",
)
LIBRARIES = ("mathcomp/algebra_tactics", "mathcomp/zify", "mathcomp/analysis", "Flocq")
INSTALL = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
REQUIRED = "REQUIRE_COQ"  # where this variable is set, a missing coqc is a failure
OPTIONS = ("-Q", ".", "Formal", "-w", "-notation-overridden,-ambiguous-paths")


class Missing(RuntimeError):
    """There is no Coq here, or not all of its libraries."""


class Broken(AssertionError):
    """Coq rejects a file; the message is Coq's own."""


# What the sources say -----------------------------------------------------------------------------


def files(folder: Path) -> list[str]:
    """The names of the modules, in the order of `_CoqProject`, which is that of the build."""
    lines = read(folder / "_CoqProject").splitlines()
    return [line.removesuffix(".v") for line in lines if line.endswith(".v")]


def without_comments(text: str) -> str:
    """A Coq text with each comment, nested ones included, and each string as a blank."""
    kept, depth = [], 0
    for token in re.split(r'(\(\*|\*\)|"(?:[^"]|"")*")', text):
        if token == "(*":
            depth += 1
        elif token == "*)" and depth:
            depth -= 1
            kept.append(" ")
        elif not depth:
            kept.append(" " if token.startswith('"') else token)
    return "".join(kept)


ASSUMING = re.compile(
    r"\b(?:Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?|Primitive|bypass_check)\b"
    r"|\b(?:Unset|Set)\s+(?:Guard|Positivity|Universe)\s+(?:Checking|Polymorphism)\b"
    r"|\bDeclare\s+Module\b|-type-in-type"
)
LOCAL = re.compile(r"\b(?:Variables?|Hypothes[ie]s|Context)\b")
SCOPE = re.compile(r"^\s*(Section|End)\b")


def forbidden(text: str) -> list[str]:
    """What would make a proof rest on something unproven: each as it stands in the text."""
    found, depth = [], 0
    for sentence in re.split(r"\.(?=\s|$)", without_comments(text)):
        if opens := SCOPE.match(sentence):
            depth += 1 if opens[1] == "Section" else -1
        found += ASSUMING.findall(sentence)
        if depth <= 0 and (local := LOCAL.match(sentence.strip())):
            found.append(f"{local[0]} outside a section")
    return found


@dataclass(frozen=True)
class Statement:
    """One definition of `statements.v`, with the comment that it opens with."""

    name: str
    comment: str
    source: str


STATEMENT = re.compile(
    r"^\(\*\* (?P<comment>(?:(?!\*\)).)*?) ?\*\)\nDefinition (?P<name>\w+) : Prop :=\n"
    r".*?\.$(?=\n\n|\n?\Z)",
    re.MULTILINE | re.DOTALL,
)


def statements(folder: Path = FOLDER) -> dict[str, Statement]:
    """The definitions of `statements.v` by name, in its order.

    Raises:
        ValueError: a definition is not of the form that the pages show: comment, name, `: Prop :=`.
    """
    text = read(folder / "statements.v")
    found = [
        Statement(match["name"], " ".join(match["comment"].split()), match[0])
        for match in STATEMENT.finditer(text)
    ]
    every = re.findall(r"^\s*(?:Definition|Lemma|Theorem|Notation|Fixpoint)\s+(\w+)", text, re.M)
    if every != [one.name for one in found]:
        odd = sorted(set(every) - {one.name for one in found})
        raise ValueError(f"statements.v holds something else than commented statements: {odd}")
    return {one.name: one for one in found}


def slug_of(name: str, slugs: Iterable[str]) -> str | None:
    """The theorem that a statement is part of."""
    fitting = [slug for slug in slugs if name == slug or name.startswith(f"{slug}_")]
    return max(fitting, key=len, default=None)


def parts(slug: str, folder: Path = FOLDER) -> list[Statement]:
    """The statements of one theorem."""
    known = theorems()
    return [one for name, one in statements(folder).items() if slug_of(name, known) == slug]


def committed_assumptions(folder: Path = FOLDER) -> dict[str, frozenset[str]]:
    """The axioms that each statement's proof may rest on, as `assumptions.txt` says.

    A line `word = axiom axiom` names a set, a line `statement: word` uses it.
    """
    sets: dict[str, frozenset[str]] = {"none": frozenset()}
    said: dict[str, frozenset[str]] = {}
    for line in read(folder / "assumptions.txt").splitlines():
        if " = " in line:
            word, _, axioms = line.partition(" = ")
            sets[word] = frozenset(axioms.split())
        elif line and not line.startswith("#"):
            name, _, word = line.partition(": ")
            said[name] = sets[word]
    return said


# The build ----------------------------------------------------------------------------------------


def absent_reason() -> str | None:
    """Why nothing can be built here; None where Coq is."""
    if shutil.which("coqc") is None:
        return f"Coq is absent: {INSTALL}"
    contributed = Path(run(ROOT, "coqc", "-where").stdout.strip()) / "user-contrib"
    lacking = [name for name in LIBRARIES if not (contributed / name).is_dir()]
    return f"Coq lacks {', '.join(lacking)}: {INSTALL}" if lacking else None


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, and keep what it says."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )


def compile_files(folder: Path, names: Sequence[str]) -> None:
    """Compile modules in order.

    Raises:
        Broken: one of them does not compile.
    """
    for name in names:
        done = run(folder, "coqc", *OPTIONS, f"{name}.v")
        if done.returncode:
            raise Broken(f"coqc {name}.v: {done.stderr.strip() or done.stdout.strip()}")


def fingerprint(folder: Path) -> str:
    """A name for the sources together with the Coq that reads them."""
    digest = hashlib.sha256(run(folder, "coqc", "--version").stdout.encode())
    for path in sorted([*folder.glob("*.v"), folder / "_CoqProject"]):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def build() -> Path:
    """The folder of the compiled development, built once per source by the first that asks.

    Raises:
        Missing: there is no Coq here.
        Broken: a file does not compile.
    """
    if reason := absent_reason():
        raise Missing(reason)
    home = ROOT / ".pytest_cache" / "formal"
    home.mkdir(parents=True, exist_ok=True)
    target = home / fingerprint(FOLDER)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        if not (target / "built").exists():
            shutil.rmtree(target, ignore_errors=True)
            copy_sources(FOLDER, target)
            compile_files(target, files(target))
            (target / "built").touch()
    return target


def copy_sources(folder: Path, target: Path) -> None:
    """Copy the sources alone."""
    target.mkdir(parents=True)
    for path in [*folder.glob("*.v"), folder / "_CoqProject"]:
        shutil.copy(path, target)


# The audit ----------------------------------------------------------------------------------------


def audit(folder: Path, names: Iterable[str], *, scratch: Path) -> dict[str, frozenset[str]]:
    """The axioms of each proof in a compiled folder, each proof held to its statement's type.

    Args:
        folder: a compiled development.
        names: the statements.
        scratch: an empty folder for the audit's own file.

    Raises:
        Broken: a statement has no proof of that name and type.
    """
    asked = list(names)
    lines = ["From Formal Require statements proofs.", "Set Printing Width 10000."]
    for name in asked:
        lines.append(f"Definition typed_{name} : statements.{name} := proofs.{name}.")
        lines.append(f'Redirect "{name}" Print Assumptions typed_{name}.')
    (scratch / "audit.v").write_text("\n".join([*lines, ""]), encoding="utf-8")
    done = run(scratch, "coqc", "-Q", os.fspath(folder), "Formal", "audit.v")
    if done.returncode:
        raise Broken(done.stderr.strip())
    return {name: axioms_in(read(scratch / f"{name}.out")) for name in asked}


def axioms_in(printed: str) -> frozenset[str]:
    """The names in the answer of `Print Assumptions`.

    Raises:
        Broken: the answer is of no known form.
    """
    if printed.strip() == "Closed under the global context":
        return frozenset()
    head, _, rest = printed.partition("\n")
    names = frozenset(re.findall(r"^([\w.']+)\s*(?::|$)", rest, re.MULTILINE))
    if head.strip() != "Axioms:" or not names:
        raise Broken(f"not understood: {printed}")
    return names


@cache
def audited() -> Mapping[str, frozenset[str]]:
    """The axioms of every statement's proof, asked once per build."""
    folder = build()
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = folder / "audit"
        names = list(statements(folder))
        if not (scratch / "done").exists():
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            audit(folder, names, scratch=scratch)
            (scratch / "done").touch()
    return {name: axioms_in(read(scratch / f"{name}.out")) for name in names}


def kernel_check(folder: Path) -> subprocess.CompletedProcess[str]:
    """Coq's separate checker on every module of the folder; it takes the libraries as they are."""
    alone = [word for name in files(folder) for word in ("-norec", f"Formal.{name}")]
    return run(folder, "coqchk", "-silent", "-Q", ".", "Formal", *alone)


def need_coq() -> None:
    """Skip the running test where Coq is absent, or fail where it must not be."""
    if reason := absent_reason():
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)


def check(slug: str) -> None:
    """Every part of the theorem is proven as stated, on the committed axioms; skip without Coq."""
    __tracebackhide__ = True
    need_coq()
    names = [one.name for one in parts(slug)]
    assert names, f"statements.v states nothing of {slug}"
    found, said = audited(), committed_assumptions()
    assert {name: found[name] for name in names} == {name: said.get(name) for name in names}


# The pages ----------------------------------------------------------------------------------------

FENCE = re.compile(r"^```coq\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fence(slug: str, folder: Path = FOLDER) -> str:
    """The statements of a theorem as its page shows them."""
    return "\n\n".join(one.source for one in parts(slug, folder)) + "\n"


def fence_findings(slug: str, root: Path = ROOT, folder: Path = FOLDER) -> list[str]:
    """The page shows the formal statements, exactly and in the section "Machine check"."""
    page = read(page_of(slug, root))
    section = page.partition("\n## Machine check\n")[2].partition("\n## ")[0]
    shown = FENCE.findall(page)
    if FENCE.findall(section) != shown:
        return [f"the page of {slug} shows Coq outside of its section 'Machine check'"]
    wanted = [fence(slug, folder)] if parts(slug, folder) else []
    return [] if shown == wanted else [f"the page of {slug} shows other statements than Coq proves"]


def with_fence(page: str, statement: str) -> str:
    """The page with its Coq fence replaced, or put at the end of the section "Machine check"."""
    block = f"```coq\n{statement}```"
    if FENCE.search(page):
        return FENCE.sub(lambda _: block, page, count=1)
    head, mark, rest = page.partition("\n## Machine check\n")
    section, following, tail = rest.partition("\n## ")
    told = "Proven in Coq, word for word ([how to read it](../formal.md)):"
    return f"{head}{mark}{section.rstrip()}\n\n{told}\n\n{block}\n{following}{tail}"


TABLE = re.compile(r"(?<=<!-- formal: begin -->\n).*?(?=<!-- formal: end -->)", re.DOTALL)


def table() -> str:
    """A row for each statement, with the word of its axioms, for `docs/formal.md`."""
    known, words = theorems(), dict(_words())
    rows = ["| theorem | statement | axioms |", "| --- | --- | --- |"]
    for name in statements():
        slug = slug_of(name, known)
        number = f"[{known[slug].number}](theorems/{slug}.md)" if slug else "?"
        rows.append(f"| {number} | `{name}` | {words.get(name, '?')} |")
    return "\n".join(rows) + "\n"


def _words() -> Iterator[tuple[str, str]]:
    for line in read(FOLDER / "assumptions.txt").splitlines():
        name, colon, word = line.partition(": ")
        if colon and not line.startswith("#"):
            yield name, word


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what is proven and on which axioms."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.formal", description=main.__doc__
    )
    parser.add_argument(
        "--write", action="store_true", help="bring the fences of the pages up to date"
    )
    parser.add_argument("--packages", action="store_true", help="name Debian's packages")
    options = parser.parse_args(arguments)
    if options.packages:
        print(*PACKAGES)
        return
    if options.write:
        for slug in theorems():
            page = page_of(slug, ROOT)
            if parts(slug):
                page.write_text(with_fence(read(page), fence(slug)), encoding="utf-8")
        overview = ROOT / "docs" / "formal.md"
        overview.write_text(TABLE.sub(lambda _: table(), read(overview)), encoding="utf-8")
        return
    for name, axioms in audited().items():
        print(f"{name}: {' '.join(sorted(axioms)) or 'none'}")


if __name__ == "__main__":
    main()
