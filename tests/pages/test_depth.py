"""The page of depths shows what the plans of layers say, number by number.

Evidence for T13. Its figure is drawn from the same numbers, and not compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import depth
from tests.pages.depth import DRAWN, MOST, OWN, PADDED, PAGE
from theory.depth_buys_heads import least_heads

SLUG = "depth_buys_heads"
bounded = pytest.mark.evidence(SLUG, "property")


def test_page_is_what_the_program_computes() -> None:
    assert PAGE.read_text(encoding="utf-8") == depth.page(), (
        "run python -m tests.pages.depth --write"
    )


def test_figure_is_drawn_and_on_the_page(tmp_path: Path) -> None:
    place = tmp_path / "new" / "figure.png"
    depth.save_figure(place)
    assert place.stat().st_size > 10_000
    shown = depth.FIGURE.relative_to(PAGE.parent).as_posix()
    assert f"]({shown})" in PAGE.read_text(encoding="utf-8")
    assert depth.FIGURE.is_file()


@bounded
def test_no_count_of_the_page_is_below_the_least() -> None:
    for side in DRAWN:
        own, padded = depth.best(side, OWN)[0], depth.best(side, PADDED)[0]
        assert least_heads(side**2) <= padded <= own <= depth.heads(side, 2) < depth.heads(side, 1)
        assert depth.heads(side, 2) == 2 * side


def test_more_layers_than_are_tried_have_no_fewer_heads() -> None:
    for side in DRAWN:
        for boundary in (OWN, PADDED):
            assert depth.heads(side, MOST + 1, boundary) > depth.best(side, boundary)[0] or (
                depth.best(side, boundary)[1] < MOST
            )
