"""The page of targets shows what was run, one row for each function of `constructions.stock`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from constructions import stock
from tests.pages.stock import PAGE, TARGETS, Target, exact_reach, page, row, rows

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_row_is_what_the_target_takes_and_computes(target: Target) -> None:
    if not target.is_here:
        pytest.skip(f"{target.needs} is not installed; the extra `ecosystem` brings it")
    assert rows(TEXT)[target.name] == row(target), "run python -m tests.pages.stock --write"


def test_page_is_what_the_program_writes() -> None:
    assert page(rows(TEXT)) == TEXT, "run python -m tests.pages.stock --write"


def test_every_function_has_a_row() -> None:
    others = {"Stock", "OnTokens", "on_tokens"}  # which carry no convolution into a library's class
    assert {target.name for target in TARGETS} == set(stock.__all__) - others


def test_largest_size_of_the_page_is_the_largest_that_is_made() -> None:
    largest = math.isqrt(exact_reach(torch.float32, 1)) - 1  # |Δ| = 1
    conv = nn.Conv1d(1, 1, 3, padding=1)
    assert stock.multihead_attention(conv, largest)
    with pytest.raises(ValueError, match="spatial_shape"):
        stock.multihead_attention(conv, largest + 1)
