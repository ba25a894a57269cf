"""A report is a table that names every path, and a warning that names the first."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from constructions import Report

REPORT = Report({"": "Conv1d -> attention"}, {"a.b": "hooked", "c": "scripted"})


def test_table_has_a_line_for_each_path() -> None:
    assert str(REPORT).splitlines() == [
        "1 replaced, 2 left",
        "replaced  (the model itself)  Conv1d -> attention",
        "left      a.b                 hooked",
        "left      c                   scripted",
    ]


def test_table_of_nothing_is_a_line() -> None:
    assert str(Report({}, {})) == "0 replaced, 0 left"


def test_warning_names_three_paths_and_counts_the_others() -> None:
    told = Report({}, {name: f"why {name}" for name in "abcde"}).warning()
    assert "left 5 of" in told
    assert "a: why a; b: why b; c: why c; and 2 more" in told
    assert "report=True" in told


def test_report_cannot_be_changed_and_goes_through_pickle() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.left = {}  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(REPORT)) == REPORT
