"""The page of timm's and transformers' layers shows what ran: every cell is run again."""

from __future__ import annotations

import pytest
import torch

from tests.pages.stock_libraries import (
    COSTS,
    NAMES,
    PAGE,
    ROWS,
    THEOREMS,
    outcome,
    page,
    size,
    wide,
)
from tests.support.ledger import record

TEXT = PAGE.read_text(encoding="utf-8")
CELLS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|")
]

GATED = "gated_heads_start_as_convolution_for_odd_sides"
PATCHES = "patches_trade_heads_for_width"
ROTATIONS = "rotations_select_shifts_without_resonance"
STEM = "the_stem_needs_one_mixture_more"
TABLES = "tables_select_the_shifts_they_tell_apart"

each_name = pytest.mark.parametrize(
    "name",
    [
        pytest.param("gpsa", marks=pytest.mark.evidence(GATED, "exact")),
        pytest.param("swin", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("beit", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("t5", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("llama", marks=pytest.mark.evidence(ROTATIONS, "exact")),
        pytest.param("gpt_oss", marks=pytest.mark.evidence(ROTATIONS, "exact")),
        pytest.param("stand_alone", marks=pytest.mark.evidence(STEM, "exact")),
        pytest.param("vit", marks=pytest.mark.evidence(PATCHES, "exact")),
    ],
)


def test_theorems_of_the_page_are_those_of_its_evidence() -> None:
    slugs = dict(
        zip(
            NAMES, (GATED, TABLES, TABLES, TABLES, ROTATIONS, ROTATIONS, STEM, PATCHES), strict=True
        )
    )
    assert {name: slug for name, (_, slug) in THEOREMS.items()} == slugs


@each_name
def test_what_a_layer_carries_is_what_the_page_says(name: str) -> None:
    column = 1 + NAMES.index(name)
    shown = {row[0]: row[column] for row in CELLS if row[0] in ROWS}
    assert shown == {row: outcome(name, options) for row, options in ROWS.items()}
    record(dtype=torch.float32)


@each_name
def test_cost_and_sizes_of_a_layer_are_what_the_page_says(name: str) -> None:
    (shown,) = (row for row in CELLS if row[0] == f"`{name}`")
    found = [str(n) for n in COSTS[name](wide(name).module)]
    sizes = [size(name, dtype) for dtype in (torch.float32, torch.float64)]
    assert shown[3:] == [*found, *sizes]


def test_page_is_what_the_program_writes() -> None:
    wide(NAMES[0])  # skips without the libraries
    assert page() == TEXT, "run python -m tests.pages.stock_libraries --write"
