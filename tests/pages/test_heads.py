"""The page of head counts shows what a run counts, row by row. Evidence for T10."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from constructions.heads import count
from tests.pages import heads
from tests.pages.heads import DIMENSIONS, DRAWS, PAGE, TAPS
from tests.support.ledger import record
from theory import heads_count_the_rank_of_the_kernel as theory
from theory.tools.alternatives import rank

SLUG = "heads_count_the_rank_of_the_kernel"
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")


@bounded
def test_page_is_what_the_program_counts() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == heads.page(heads.trained_part(text)), "run python -m tests.pages.heads --write"


@pytest.mark.thorough
def test_table_of_the_trained_network_is_what_training_finds() -> None:
    assert heads.trained_part(PAGE.read_text(encoding="utf-8")) == heads.table_of_network()


@exact
@pytest.mark.parametrize("name", heads.FILTERS)
def test_filter_has_the_count_of_exact_linear_algebra(name: str) -> None:
    filters = heads.FILTERS[name]
    kernel = [[Fraction(v) for v in tap] for tap in zip(*filters, strict=True) if any(tap)]
    found = count(heads.of_filters(filters))
    assert found.certificate.check()
    assert (found.rank, found.case) == (rank(kernel), theory.case(kernel))
    assert (found.masked, found.finite) == (
        theory.least_masked(kernel),
        theory.least_finite(kernel),
    )


def tail(found: int, chance: Fraction) -> Fraction:
    """The smaller of the chances that a count is so small, or so large."""
    of = [comb(DRAWS, k) * chance**k * (1 - chance) ** (DRAWS - k) for k in range(DRAWS + 1)]
    return min(sum(of[: found + 1], Fraction(0)), sum(of[found:], Fraction(0)))


UNLIKELY = Fraction(1, 2**14)


@bounded
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_count_of_random_kernels_is_not_unlikely_by_wendels_formula(dimension: int) -> None:
    assert tail(heads.in_case_a(dimension), theory.wendel(TAPS, dimension)) > UNLIKELY
    record(dtype="rational")


@control
@pytest.mark.parametrize("dimension", [4, 5])
def test_count_is_unlikely_by_the_formula_of_another_dimension(dimension: int) -> None:
    found = heads.in_case_a(dimension)
    assert tail(found, theory.wendel(TAPS, dimension - 1)) < UNLIKELY
