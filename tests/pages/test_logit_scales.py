"""The page of logit scales shows what a run computes, number by number.

Evidence for T12. Its figure is drawn from the same numbers, and not compared.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from flint import arb

from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from tests.pages import logit_scales
from tests.pages.logit_scales import CODES, ENCODINGS, KERNELS, OF_CODE, PAGE, SIDES
from tests.support.ledger import record
from theory.tools import spherical_codes as codes
from theory.tools.theta import ball

SLUG = "unit_encodings_have_the_gap_of_a_spherical_code"
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_encoding = pytest.mark.parametrize("name", ENCODINGS)


def test_page_is_what_the_program_computes() -> None:
    assert PAGE.read_text(encoding="utf-8") == logit_scales.page(), (
        "run python -m tests.pages.logit_scales --write"
    )


def test_figure_is_drawn_and_on_the_page(tmp_path: Path) -> None:
    place = tmp_path / "new" / "figure.png"
    logit_scales.save_figure(place)
    assert place.stat().st_size > 10_000
    shown = logit_scales.FIGURE.relative_to(PAGE.parent).as_posix()
    assert f"]({shown})" in PAGE.read_text(encoding="utf-8")
    assert logit_scales.FIGURE.is_file()


@bounded
@every_kernel
@every_encoding
def test_shift_leads_by_the_gap_that_the_spread_is_divided_by(name: str, kernel: int) -> None:
    side = 16
    found = logit_scales.scores(ENCODINGS[name], side, kernel)
    shifts = logit_scales.shifts_of(kernel)
    places = ((shifts + side - 1) @ torch.tensor([2.0 * side - 1, 1.0]).double()).long()
    own = found.gather(1, places.unsqueeze(1))
    same = torch.zeros_like(found, dtype=torch.bool).scatter(1, places.unsqueeze(1), True)
    if name == "periodic":  # a displacement of a whole turn is the shift itself
        axis = torch.arange(1 - side, side).double()
        turns = torch.cartesian_prod(axis, axis) - shifts.unsqueeze(1)
        same |= (turns.remainder(side) == 0).all(dim=-1)
    runner_up = found.masked_fill(same, -math.inf).amax(dim=1)
    gap = ENCODINGS[name].gap(shifts, Lattice.box((side, side)))
    assert torch.all(own.squeeze(1) - runner_up >= gap)


@bounded
@every_kernel
@every_encoding
def test_no_spread_is_below_the_bound(name: str, kernel: int) -> None:
    least = logit_scales.least_spread(logit_scales.dimension(name), kernel**2)
    for side in SIDES[:2]:
        found = logit_scales.spread(name, side, kernel)
        record(ratio=least / found, dtype=torch.float64)
        assert least <= found


@bounded
@every_kernel
def test_code_has_at_least_the_spread_of_its_dimension(kernel: int) -> None:
    dimension, code = CODES[kernel]
    assert len(code()) >= kernel**2
    assert logit_scales.least_spread(dimension, kernel**2) <= logit_scales.spread(
        OF_CODE, 0, kernel
    )


@bounded
@pytest.mark.parametrize("index", range(0, 900, 90))
def test_rings_are_as_far_apart_as_they_say(index: int) -> None:
    for size, angle, first in logit_scales.rings()[3 * index : 3 * index + 3]:
        points = [
            (arb.sin_pi(ball(at)), arb.cos_pi(ball(at)), Fraction(2 * i, count))
            for at, count in logit_scales.parallels(angle, first)
            for i in range(count)
        ]
        assert len(points) == size
        cosine = arb.cos_pi(ball(angle))
        turned = cache(lambda turn: arb.cos_pi(ball(turn)))
        for (radius, height, turn), (radius_, height_, turn_) in combinations(points, 2):
            product = radius * radius_ * turned(turn - turn_) + height * height_
            assert not product > cosine  # balls: equal ones overlap
        if size > 1:
            bound = codes.ceiling(3, size)
            record(ratio=float(((1 - cosine) / bound).mid()), dtype=torch.float64)
            assert not 1 - cosine > bound


@bounded
@pytest.mark.parametrize("dimension", logit_scales.DIMENSIONS)
@pytest.mark.parametrize("size", [2, 9, 12, 25, 49, 100])
def test_best_gap_is_enclosed(dimension: int, size: int) -> None:
    least, most = logit_scales.best_gap(dimension, size)
    assert least > 0
    assert not least > most
    if dimension == 2 or size <= 2 * dimension:
        assert least.overlaps(most)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(arb(2), 2, 2), (arb(5) / 2, 2, 3), (arb(3).sqrt() ** 2, 3, 3), (arb(-1) / 3, -1, 0)],
    ids=["integer", "half", "integer_in_a_ball", "negative"],
)
@bounded
def test_integers_beside_a_ball_are_it_where_it_holds_one(value: arb, low: int, high: int) -> None:
    assert logit_scales.whole(value) == low
    assert logit_scales.whole(value, up=True) == high


@control
@every_kernel
def test_circle_in_place_of_the_code_needs_larger_scores(kernel: int) -> None:
    assert logit_scales.spread("circle", 16, kernel) > 3 * logit_scales.spread(OF_CODE, 16, kernel)


@control
def test_threshold_of_a_format_saturates_no_wider_one() -> None:
    gaps = [logit_scales.threshold(dtype) for dtype in FORMATS]
    assert gaps == sorted(gaps)
    assert len(set(gaps)) == len(gaps)
    for low, high in zip(gaps, FORMATS[1:], strict=False):
        scores = torch.tensor([0.0, -low], dtype=torch.float64)
        assert scores.softmax(-1).to(high)[1] > 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.2339, "0.234"),
        (2.0, "2"),
        (99.96, "100"),
        (243.4, "243"),
        (999.6, "1,000"),
        (82_944, "82,944"),
        (99_999.6, "1.0 · 10⁵"),
        (2.64e10, "2.6 · 10¹⁰"),
    ],
)
def test_number_is_shown_with_three_digits_or_a_power(value: float, shown: str) -> None:
    assert logit_scales.power(value) == shown
