"""The page of options shows what was run: every cell that torch allows is filled.

Evidence for T6. The counts themselves change with the version of Hypothesis; that they are there,
and the rest of the page, may not.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from tests.pages.options import COLUMNS, PAGE, ROWS, Column, is_possible, page, tally
from tests.support.ledger import record
from tests.support.strategies import CONVOLUTIONS, TRANSPOSED

exact = pytest.mark.evidence("hyperparameters_are_lattices_and_offsets", "exact")
every_column = pytest.mark.parametrize(
    "column", COLUMNS, ids=[f"{layer.__name__}, {mode}" for layer, mode in COLUMNS]
)

TEXT = PAGE.read_text(encoding="utf-8")


def cells(text: str) -> dict[Column, dict[str, str]]:
    """The cells of the page's three tables, by column and row."""
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()[2:]]
        for part in re.split(r"^## \d-D$", text, flags=re.MULTILINE)[1:]
    ]
    found: dict[Column, dict[str, str]] = {}
    for plain, transposed, table in zip(CONVOLUTIONS, TRANSPOSED, tables, strict=True):
        titles = table[0][1:]
        for place, title in enumerate(titles, start=1):
            layer, mode = (
                (transposed, "zeros") if title == "transposed" else (plain, title.strip("`"))
            )
            found[layer, mode] = {row[0]: row[place] for row in table[2:] if row[0]}
    return found


@exact
@every_column
def test_cells_are_filled_by_a_run_and_on_the_page(column: Column) -> None:
    counts = tally(column, log=partial(record, dtype=torch.float32))
    shown = cells(TEXT)[column]
    assert list(shown) == list(ROWS)
    for row, cell in shown.items():
        if is_possible(row, column):
            assert counts[row] > 0
            assert int(cell.replace(",", "")) > 0
        else:
            assert counts[row] == 0
            assert cell == "—"


def test_page_is_what_the_program_writes() -> None:
    numbers = {
        column: {row: int(cell.replace(",", "")) for row, cell in rows.items() if cell != "—"}
        for column, rows in cells(TEXT).items()
    }
    assert page(numbers) == TEXT, "run python -m tests.pages.options --write"


def test_run_is_the_same_at_every_call() -> None:
    assert tally(COLUMNS[0]) == tally(COLUMNS[0])
