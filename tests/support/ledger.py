"""The ledger: for each theorem and each kind of evidence, what ran and what came of it.

A pytest plugin. A test says what it is evidence for with `@pytest.mark.evidence(slug, kind)`, and
may `record` how near an error came to its bound; nothing is typed by hand. After every run the
terminal shows one row per theorem, the workers of pytest-xdist merged; `--ledger FILE` writes it as
Markdown, or as JSON if FILE ends so. `python -m tests.support.ledger --write` updates the tables of
README and index.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.support.layout import KINDS, Evidence, declared_evidence

__all__ = ["record"]

ROOT = Path(__file__).parent.parent.parent
BEGIN = "<!-- ledger: begin (python -m tests.support.ledger --write) -->"
END = "<!-- ledger: end -->"

Stage = tuple[str, str]  # device, dtype


def theorems() -> Mapping[str, Any]:
    """Every stated theorem by its slug, in the order of the catalogue."""
    import theory  # here, so that the ledger also prints when theory cannot be imported

    return {module.THEOREM.slug: module.THEOREM for module in theory.theorems()}


# While a test runs --------------------------------------------------------------------------------


@dataclass
class Margin:
    """How many comparisons were made, and the worst error over bound (None: all bit for bit)."""

    cases: int = 0
    worst: float | None = None

    def add(self, cases: int, ratio: float | None) -> None:
        """Count the cases and keep the larger ratio; what is not a number counts as infinite."""
        self.cases += cases
        if ratio is not None:
            self.worst = max(self.worst or 0.0, math.inf if math.isnan(ratio) else ratio)

    def __str__(self) -> str:
        """`0.83 (120)`: the worst ratio, of so many comparisons."""
        if self.worst is None:
            return f"equal ({self.cases:,})"
        return f"{self.worst:{'.3g' if self.worst <= 1 else '.9g'}} ({self.cases:,})"


@dataclass
class Notes:
    """What one test told the ledger."""

    examples: int = 0
    margins: dict[Stage, Margin] = field(default_factory=lambda: defaultdict(Margin))


_running: list[Notes] = []  # a stack, since a test of this plugin runs tests


def record(
    *, ratio: float | None = None, device: object = "cpu", dtype: object = "integer"
) -> None:
    """Log one comparison of the current test: error over bound, and where it ran.

    Args:
        ratio: the error over its bound; leave it out where the comparison is bit for bit.
        device: a torch device, or its name.
        dtype: a torch dtype, or its name.

    Raises:
        RuntimeError: no test is running.
    """
    if not _running:
        raise RuntimeError("record() logs for the current test, and no test is running")
    stage = (str(device).partition(":")[0], str(dtype).removeprefix("torch."))
    _running[-1].margins[stage].add(1, None if ratio is None else float(ratio))


def counted(body: Callable[..., Any], notes: Notes) -> Callable[..., Any]:
    """The body of a Hypothesis test, made to count the examples that it runs to the end."""

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        result = body(*args, **kwargs)  # a rejected or failing example leaves here
        notes.examples += 1
        return result

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Take the notes of one test, and attach them to its report."""
    notes = Notes()
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    body = getattr(handle, "inner_test", None)
    if handle is not None and body is not None:
        handle.inner_test = counted(body, notes)
    _running.append(notes)
    try:
        return (yield)
    finally:
        _running.pop()
        if handle is not None and body is not None:
            handle.inner_test = body
        margins = [[*stage, m.cases, m.worst] for stage, m in notes.margins.items()]
        item.user_properties.append(("notes", {"examples": notes.examples, "margins": margins}))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attach to each test what it is evidence for, so that a skipped one is known too."""
    for item in items:
        pairs = sorted({mark.args for mark in item.iter_markers("evidence")})
        for pair in pairs:
            if len(pair) != 2 or pair[1] not in KINDS:
                raise pytest.UsageError(
                    f"{item.nodeid}: evidence{pair} must be (slug, kind), kind one of {KINDS}"
                )
        if pairs:
            item.user_properties.append(("evidence", pairs))


# After the run ------------------------------------------------------------------------------------


@dataclass
class Account:
    """All that is known of one theorem and one kind of evidence."""

    tests: Counter[str] = field(default_factory=Counter)  # outcome: how many
    examples: int = 0
    margins: dict[Stage, Margin] = field(default_factory=lambda: defaultdict(Margin))

    def __str__(self) -> str:
        """`3 passed, 1 skipped`; failures come first; `-` where no such test exists."""
        outcomes = ("FAILED", "passed", "skipped", "not run")
        return ", ".join(f"{self.tests[o]} {o}" for o in outcomes if self.tests[o]) or "-"


class Ledger:
    """Reads the reports of one run, whichever process they come from."""

    def __init__(self, config: pytest.Config) -> None:
        """Start with nothing known."""
        self.config = config
        self.outcomes: dict[str, str] = {}
        self.evidence: dict[str, list[Evidence]] = {}
        self.notes: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep one phase of one test; a failure or a skip outlives later phases."""
        told: dict[str, Any] = dict(report.user_properties)
        name = report.nodeid
        self.evidence[name] = [(slug, kind) for slug, kind in told.get("evidence", ())]
        self.notes |= {name: told["notes"]} if "notes" in told else {}
        if report.failed:
            self.outcomes[name] = "FAILED"
        elif report.skipped:
            self.outcomes[name] = "skipped"
        elif report.when == "call":
            self.outcomes[name] = "passed"

    @property
    def examples(self) -> int:
        """How many Hypothesis examples ran to the end, each counted once."""
        return sum(note["examples"] for note in self.notes.values())

    def accounts(self, declared: Mapping[str, set[Evidence]]) -> dict[Evidence, Account]:
        """Sum up per theorem and kind; a declared test function without a report did not run."""
        accounts: dict[Evidence, Account] = defaultdict(Account)
        for name, outcome in self.outcomes.items():
            note = self.notes.get(name, {"examples": 0, "margins": []})
            for pair in self.evidence[name]:
                account = accounts[pair]
                account.tests[outcome] += 1
                account.examples += note["examples"]
                for device, dtype, cases, worst in note["margins"]:
                    account.margins[device, dtype].add(cases, worst)
        ran = {name.partition("[")[0].partition("@")[0] for name in self.outcomes}
        for name, pairs in declared.items():
            for pair in pairs if name not in ran else ():
                accounts[pair].tests["not run"] += 1
        return accounts

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the ledger after every run, and write it where `--ledger` says."""
        if self.config.option.collectonly:
            return
        problems = []
        stated: Mapping[str, Any] = {}
        declared: dict[str, set[Evidence]] = {}
        try:
            stated = theorems()
        except Exception as error:  # a broken theory is for its tests to report
            problems.append(f"theory cannot be imported: {error!r}")
        try:
            declared = declared_evidence(self.config.rootpath / "tests")
        except (SyntaxError, ValueError) as error:
            problems.append(f"the declared evidence cannot be read: {error}")
        accounts = self.accounts(declared)
        tables = [outcome_table(stated, accounts), margin_table(stated, accounts)]
        lines = [*problems, f"{self.examples:,} Hypothesis examples ran ({self.profile()})"]

        terminalreporter.section("ledger")
        for part in [*(aligned(table) for table in tables if table), lines]:
            for line in (*part, ""):
                terminalreporter.write_line(line)
        if self.config.option.ledger is not None:
            path = self.config.invocation_params.dir / self.config.option.ledger
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                path.write_text(self.as_json(stated, accounts), encoding="utf-8")
            else:
                facts = [f"- {name}: {value}" for name, value in self.provenance().items()]
                parts = ["# Ledger", "\n".join([*facts, *(f"- {line}" for line in lines)])]
                parts += ["\n".join(markdown(table)) for table in tables if table]
                path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
            terminalreporter.write_line(f"written to {path}")

    def profile(self) -> str:
        """The Hypothesis profile, and the seed if there is one."""
        seed = getattr(self.config.option, "hypothesis_seed", None)
        name = getattr(self.config.option, "hypothesis_profile", None) or "default"
        return f"profile {name}" + (f", seed {seed}" if seed is not None else "")

    def provenance(self) -> dict[str, object]:
        """That of this process, and of the card if a test recorded one."""
        stages = [margin for note in self.notes.values() for margin in note["margins"]]
        return provenance(on_gpu=any(device == "cuda" for device, *_ in stages))

    def as_json(self, stated: Mapping[str, Any], accounts: Mapping[Evidence, Account]) -> str:
        """The same facts for programs; an infinite ratio is the string "inf"."""
        rows = [
            {
                "theorem": slug,
                "kind": kind,
                "tests": dict(account.tests),
                "examples": account.examples,
                "margins": [
                    {
                        "device": device,
                        "dtype": dtype,
                        "cases": margin.cases,
                        "worst": "inf" if margin.worst == math.inf else margin.worst,
                    }
                    for (device, dtype), margin in sorted(account.margins.items())
                ],
            }
            for slug in slugs(stated, accounts)
            for kind in KINDS
            if (account := accounts.get((slug, kind)))
        ]
        facts = self.provenance() | {"hypothesis": self.profile(), "examples": self.examples}
        return json.dumps({**facts, "evidence": rows}, indent=2) + "\n"


def provenance(*, on_gpu: bool = False) -> dict[str, object]:
    """When, where and with what a run was made.

    Args:
        on_gpu: whether a GPU was used, if need be by workers of this process alone.
    """
    facts: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
    if on_gpu or "torch" in sys.modules:
        import torch

        facts |= card(torch) | flags(torch)
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return facts | ({"commit": described.stdout.strip()} if described.returncode == 0 else {})


def card(torch: Any) -> dict[str, object]:
    """The GPU and what drives it; nothing without one.

    Args:
        torch: the module, which is imported late, and which a test can be in place of.
    """
    if not torch.cuda.is_available():
        return {}
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    toolkit, cudnn = torch.version.cuda or torch.version.hip, torch.backends.cudnn.version()
    return {
        "card": f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, capability {capability}",
        "cuda": f"{toolkit}, cuDNN {cudnn}",
    }


def flags(torch: Any) -> dict[str, object]:
    """What torch was told about float32 products and about determinism."""
    gpu, cudnn, onednn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    deterministic = torch.are_deterministic_algorithms_enabled() and cudnn.deterministic
    return {
        "float32 products": (
            f"GPU {gpu.matmul.fp32_precision} (convolutions {cudnn.conv.fp32_precision}), "
            f"CPU {onednn.matmul.fp32_precision} (convolutions {onednn.conv.fp32_precision}); "
            "none: not rounded"
        ),
        "algorithms": ("deterministic" if deterministic else "any")
        + ("" if cudnn.enabled else ", without cuDNN"),
    }


# Tables -------------------------------------------------------------------------------------------

Table = list[list[str]]  # the header first


def slugs(stated: Mapping[str, Any], accounts: Mapping[Evidence, Account]) -> list[str]:
    """The stated theorems, then whatever else claims evidence."""
    return [*stated, *sorted({slug for slug, _ in accounts} - set(stated))]


def number(slug: str, stated: Mapping[str, Any]) -> str:
    """The theorem's number; a question mark where the theorem is not stated."""
    return str(stated[slug].number) if slug in stated else "?"


def outcome_table(stated: Mapping[str, Any], accounts: Mapping[Evidence, Account]) -> Table:
    """A row per theorem, a column per kind: how many tests passed, failed, did not run."""
    table = [["", "theorem", *KINDS, "examples"]]
    for slug in slugs(stated, accounts):
        cells = [accounts.get((slug, kind), Account()) for kind in KINDS]
        examples = sum(cell.examples for cell in cells)
        table.append([number(slug, stated), slug, *map(str, cells), f"{examples:,}"])
    return table


def margin_table(stated: Mapping[str, Any], accounts: Mapping[Evidence, Account]) -> Table:
    """A row per theorem, kind and device, a column per dtype: the worst error over bound."""
    dtypes = sorted({dtype for account in accounts.values() for _, dtype in account.margins})
    table = [["worst error/bound (comparisons)", *dtypes]]
    for slug in slugs(stated, accounts):
        for kind in KINDS:
            margins = accounts.get((slug, kind), Account()).margins
            for device in sorted({device for device, _ in margins}):
                name = number(slug, stated) if slug in stated else slug
                cells = [str(margins.get((device, dtype), "-")) for dtype in dtypes]
                table.append([f"{name} {kind}, {device}", *cells])
    return table if dtypes else []


def aligned(table: Table) -> Iterator[str]:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def markdown(table: Table) -> Iterator[str]:
    """The table as Markdown."""
    yield f"| {' | '.join(table[0])} |"
    yield f"|{' --- |' * len(table[0])}"
    for row in table[1:]:
        yield f"| {' | '.join(row)} |"


# The tables of README and index ------------------------------------------------------------------


def readme_block(stated: Mapping[str, Any], declared: Mapping[str, set[Evidence]]) -> str:
    """The stable part of the ledger: each theorem, and the kinds of evidence that exist for it."""
    exists = set().union(*declared.values())
    table = [["theorem", *KINDS]]
    for slug, theorem in stated.items():
        title = f"[{theorem.number}. {theorem.title}](docs/theorems/{slug}.md)"
        table.append([title, *("yes" if (slug, kind) in exists else "" for kind in KINDS)])
    return "\n".join([BEGIN, *markdown(table), END])


def index_block(stated: Mapping[str, Any]) -> str:
    """The table of the pages: each theorem in one line."""
    table = [["", "theorem", "in one line"]]
    for slug, theorem in stated.items():
        title = f"[{theorem.title}](theorems/{slug}.md)"
        table.append([theorem.number, title, theorem.gist])
    return "\n".join([BEGIN, *markdown(table), END])


def blocks() -> Mapping[Path, str]:
    """The files with a table between the two marks, and what stands there."""
    stated = theorems()
    return {
        ROOT / "README.md": readme_block(stated, declared_evidence(ROOT / "tests")),
        ROOT / "docs" / "index.md": index_block(stated),
    }


def with_block(text: str, block: str) -> str:
    """The text with the block in place of what stands between the block's two marks.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected one {BEGIN!r} and then one {END!r}")
    return f"{before}{block}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of README and index, or bring both up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.ledger", description=main.__doc__
    )
    parser.add_argument(
        "--write", action="store_true", help="write them into README.md and docs/index.md"
    )
    options = parser.parse_args(arguments)
    for path, block in blocks().items():
        if options.write:
            text = path.read_text(encoding="utf-8")
            path.write_text(with_block(text, block), encoding="utf-8")
        else:
            print(block)


# Options ------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--ledger`."""
    parser.addoption("--ledger", metavar="FILE", help="write the ledger as Markdown, or as .json")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the ledger in the process that sees every report."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(config), "ledger")


if __name__ == "__main__":
    main()
