"""The ledger says what ran, counts what was executed, and is up to date in the README."""

import inspect
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis.errors import UnsatisfiedAssumption

import theory
from tests.support.layout import KINDS, declared_evidence
from tests.support.ledger import (
    BEGIN,
    END,
    ROOT,
    Account,
    Margin,
    Notes,
    blocks,
    card,
    counted,
    flags,
    provenance,
    readme_block,
    record,
    theorems,
    with_block,
)

THEORY = """
from types import SimpleNamespace

def theorems():
    return tuple(
        SimpleNamespace(THEOREM=SimpleNamespace(slug=slug, number=number, title=slug))
        for number, slug in [("T1", "first"), ("T2", "second"), ("T3", "third")]
    )
"""

TESTS = """
import pytest
from hypothesis import assume, given, settings, strategies as st
from tests.support.ledger import record

few = settings(max_examples=20, derandomize=True, database=None)

@pytest.mark.evidence("first", "symbolic")
def test_proof():
    pass

@pytest.mark.evidence("first", "exact")
@settings(few, max_examples=7)
@given(st.integers(0, 10**6))
def test_equal(x):
    record(dtype="float64")

@pytest.mark.evidence("first", "property")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@few
@given(x=st.integers(0, 10**6))
def test_bounded(x, dtype):
    assume(x % 2)
    record(ratio=0.25 if dtype == "float16" else 0.5, dtype=dtype)

@pytest.mark.evidence("second", "control")
def test_rejected():
    record(ratio=3.0, device="cuda:0", dtype="torch.bfloat16")
    assert False

@pytest.mark.evidence("second", "symbolic")
@pytest.mark.skip(reason="on purpose")
def test_skipped():
    pass

@pytest.mark.evidence("second", "formal")
def test_left_out():
    pass

@few
@given(st.integers(0, 10**6))
def test_evidence_for_nothing(x):
    pass
"""

SUMMARY = [
    r"    theorem +symbolic +exact +property +control +formal +examples",
    r"T1  first +1 passed +1 passed +2 passed +- +- +47",
    r"T2  second +1 skipped +- +- +1 FAILED +1 not run +0",
    r"T3  third +- +- +- +- +- +0",
    r"worst error/bound \(comparisons\) +bfloat16 +float16 +float32 +float64",
    r"T1 exact, cpu +- +- +- +equal \(7\)",
    r"T1 property, cpu +- +0.25 \(20\) +0.5 \(20\) +-",
    r"T2 control, cuda +3 \(1\) +- +- +-",
    r"67 Hypothesis examples ran \(profile default\)",
]

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the tests above, all but one, in a process of their own."""
    for name, text in {"theory/__init__": THEORY, "tests/test_first": TESTS}.items():
        path = pytester.path / f"{name}.py"
        path.parent.mkdir()
        path.write_text(text)
    pytester.makeini("[pytest]\nmarkers = evidence(slug, kind)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(ROOT)]))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def run(*arguments: str) -> pytest.RunResult:
        options = ("-p", "tests.support.ledger", "-k", "not left_out")
        return pytester.runpytest_subprocess(*options, *arguments)

    return run


def test_summary_prints_what_it_knows_when_theory_does_not_import(
    run: Run, pytester: pytest.Pytester
) -> None:
    (pytester.path / "theory" / "__init__.py").write_text("raise RuntimeError('half-written')")
    run("-n", "0").stdout.re_match_lines(
        [r"\?  first +1 passed .*", r"theory cannot be imported: RuntimeError\('half-written'\)"]
    )


def test_unknown_kind_of_evidence_stops_the_run(run: Run, pytester: pytest.Pytester) -> None:
    wrong = "import pytest\n@pytest.mark.evidence('first', 'vague')\ndef test_it(): pass"
    (pytester.path / "tests" / "test_wrong.py").write_text(wrong)
    result = run("-n", "0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_wrong.py::test_it: evidence('first', 'vague') must be*"])


def test_two_workers_say_what_ran_what_failed_and_what_did_not_run_and_write_it(
    run: Run, pytester: pytest.Pytester
) -> None:
    run("-n", "2", "--ledger", "records/day.md").stdout.re_match_lines(SUMMARY)
    text = (pytester.path / "records" / "day.md").read_text()
    assert "- 67 Hypothesis examples ran (profile default)" in text
    assert "| T1 | first | 1 passed | 1 passed | 2 passed | - | - | 47 |" in text
    assert "| T2 control, cuda | 3 (1) | - | - | - |" in text
    assert "- float32 products: GPU " in text  # since a test says that it ran on one


def test_one_process_writes_the_same_counts_as_json(run: Run, pytester: pytest.Pytester) -> None:
    # The one test that says it ran on a GPU, for which torch would be imported again.
    without = ("--deselect", "tests/test_first.py::test_rejected")
    run("-n", "0", "--ledger", "day.json", *without)
    facts = json.loads((pytester.path / "day.json").read_text())
    rows = {(row["theorem"], row["kind"]): row for row in facts["evidence"]}
    assert facts["examples"] == 67
    assert rows["second", "formal"]["tests"] == {"not run": 1}
    assert rows["first", "exact"]["margins"] == [
        {"device": "cpu", "dtype": "float64", "cases": 7, "worst": None}
    ]


def a_torch(*, has_card: bool, deterministic: bool = False, cudnn: bool = True) -> Any:
    """Enough of torch to say where it ran and with what flags."""
    matmul, conv = SimpleNamespace(fp32_precision="none"), SimpleNamespace(fp32_precision="tf32")
    memory = SimpleNamespace(total_memory=80 * 2**30)
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: has_card,
            get_device_name=lambda: "Card 9000",
            get_device_capability=lambda: (9, 0),
            get_device_properties=lambda index: memory,
        ),
        version=SimpleNamespace(cuda="13.0", hip=None),
        backends=SimpleNamespace(
            cuda=SimpleNamespace(matmul=matmul),
            cudnn=SimpleNamespace(
                conv=conv, deterministic=deterministic, enabled=cudnn, version=lambda: 91002
            ),
            mkldnn=SimpleNamespace(matmul=matmul, conv=matmul),
        ),
        are_deterministic_algorithms_enabled=lambda: deterministic,
    )


def test_record_names_the_card_and_what_drives_it() -> None:
    assert card(a_torch(has_card=False)) == {}
    assert card(a_torch(has_card=True)) == {
        "card": "Card 9000, 80 GiB, capability 9.0",
        "cuda": "13.0, cuDNN 91002",
    }


@pytest.mark.parametrize(
    ("deterministic", "cudnn", "algorithms"),
    [
        (False, True, "any"),
        (True, True, "deterministic"),
        (True, False, "deterministic, without cuDNN"),
    ],
    ids=["any", "deterministic", "without_cudnn"],
)
def test_record_names_the_flags_of_the_run(
    deterministic: bool, cudnn: bool, algorithms: str
) -> None:
    told = flags(a_torch(has_card=True, deterministic=deterministic, cudnn=cudnn))
    assert told == {
        "float32 products": (
            "GPU none (convolutions tf32), CPU none (convolutions none); none: not rounded"
        ),
        "algorithms": algorithms,
    }


def test_flags_are_those_that_torch_has() -> None:
    import torch

    assert set(flags(torch)) == {"float32 products", "algorithms"}
    assert not torch.cuda.is_available() or "card" in provenance(on_gpu=True)


def test_margin_keeps_the_worst_ratio_and_takes_nan_for_infinite() -> None:
    margin = Margin()
    assert str(margin) == "equal (0)"
    for ratio in (0.0, 0.5, None, 0.25):
        margin.add(1, ratio)
    assert (margin.cases, margin.worst) == (4, 0.5)
    margin.add(1, math.nan)
    assert margin.worst == math.inf


def test_account_names_failures_first_and_nothing_as_a_dash() -> None:
    account = Account()
    assert str(account) == "-"
    account.tests.update({"passed": 3, "FAILED": 1})
    assert str(account) == "1 FAILED, 3 passed"


def test_record_outside_a_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.ledger._running", [])
        with pytest.raises(RuntimeError, match="no test is running"):
            record(ratio=0.5)


def test_counting_examples_keeps_the_source_that_hypothesis_knows_a_test_by() -> None:
    def body(x: int) -> None:
        """Draws nothing."""

    notes = Notes()
    counting = counted(body, notes)
    counting(x=3)
    assert notes.examples == 1
    assert inspect.getsource(counting) == inspect.getsource(body)
    assert inspect.signature(counting) == inspect.signature(body)


def test_example_that_is_rejected_is_not_counted() -> None:
    def body() -> None:
        raise UnsatisfiedAssumption

    notes = Notes()
    with pytest.raises(UnsatisfiedAssumption):
        counted(body, notes)()
    assert notes.examples == 0


def test_every_marker_is_one_that_the_source_declares(request: pytest.FixtureRequest) -> None:
    declared = declared_evidence(ROOT / "tests")
    for item in request.session.items:
        pairs = {mark.args for mark in item.iter_markers("evidence")}
        name = item.nodeid.partition("[")[0].partition("@")[0]
        assert pairs <= declared.get(name, set()), item.nodeid


@pytest.mark.parametrize("path", blocks(), ids=lambda path: path.name)
def test_table_shows_the_theorems_and_the_evidence_that_exist(path: Path) -> None:
    assert blocks()[path] in path.read_text(encoding="utf-8"), (
        f"{path.name} is out of date; run: python -m tests.support.ledger --write"
    )


def test_readme_block_says_yes_where_a_kind_of_evidence_exists() -> None:
    slug, theorem = next(iter(theorems().items()))
    last = readme_block({slug: theorem}, {"test": {(slug, "formal")}}).splitlines()[-2]
    assert last.startswith(f"| [{theorem.number}. {theorem.title}](docs/theorems/{slug}.md) |")
    assert [cell.strip() for cell in last.split("|")[2:-1]] == [""] * (len(KINDS) - 1) + ["yes"]


def test_block_replaces_what_stands_between_the_marks() -> None:
    block = f"{BEGIN}\nnew\n{END}"
    assert with_block(f"above\n{BEGIN}\nold\n{END}\nbelow", block) == f"above\n{block}\nbelow"


@pytest.mark.parametrize(
    "text",
    ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{END}", f"{BEGIN}{BEGIN}{END}"],
    ids=["no_mark", "no_end", "end_before_begin", "two_ends", "two_begins"],
)
def test_block_needs_its_two_marks_once_each(text: str) -> None:
    with pytest.raises(ValueError, match="expected one"):
        with_block(text, "block")


def test_catalogue_is_sorted_and_slugs_are_unique() -> None:
    modules = theory.theorems()
    numbers = [int(module.THEOREM.number.removeprefix("T")) for module in modules]
    assert numbers == sorted(numbers)  # a number of the catalogue may be several theorems
    assert len(theorems()) == len(modules)
