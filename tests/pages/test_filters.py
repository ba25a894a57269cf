"""The page of filters shows what a run computes, number by number.

Evidence for T24. Its figure is drawn from the same numbers, and not compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pages import filters
from tests.pages.filters import PAGE

SLUG = "four_score_terms_are_four_filters"
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")


def test_page_is_what_the_program_computes() -> None:
    assert PAGE.read_text(encoding="utf-8") == filters.page(), (
        "run python -m tests.pages.filters --write"
    )


def test_figure_is_drawn_and_on_the_page(tmp_path: Path) -> None:
    place = tmp_path / "new" / "figure.png"
    filters.save_figure(place)
    assert place.stat().st_size > 10_000
    shown = filters.FIGURE.relative_to(PAGE.parent).as_posix()
    assert f"]({shown})" in PAGE.read_text(encoding="utf-8")
    assert filters.FIGURE.is_file()


@exact
def test_magnifying_glass_shows_pixels_of_the_photograph_bit_for_bit() -> None:
    image, offsets = filters.photograph()[0], filters.lens()[0].long()
    seen = filters.panels()["query and position: deformable"][0]
    height, width = image.shape[1:]
    for i in range(height):
        for j in range(width):
            row = min(max(i + int(offsets[0, i, j]), 0), height - 1)
            column = min(max(j + int(offsets[1, i, j]), 0), width - 1)
            assert torch.equal(seen[:, i, j], image[:, row, column])


@control
def test_offsets_do_move_pixels_and_noise_is_there() -> None:
    assert filters.lens().count_nonzero() > 500
    assert filters.error("with noise") > filters.error("both: bilateral")
    assert not torch.equal(filters.panels()["query and position: deformable"], filters.photograph())
