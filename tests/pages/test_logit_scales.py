"""The page of logit scales shows what a run computes, number by number.

Evidence for T12. Its figure is drawn from the same numbers, and not compared.
"""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
import torch

from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from tests.pages import logit_scales
from tests.pages.digits import DOWN, UP, power
from tests.pages.logit_scales import CODES, ENCODINGS, KERNELS, OF_CODE, PAGE, SIDES
from tests.support.ledger import record
from theory.tools import spherical_codes as codes

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
    # With the torus a displacement of a whole turn is the shift itself.
    same = torch.zeros_like(found, dtype=torch.bool).scatter(1, places.unsqueeze(1), True)
    if name == "periodic":
        axis = torch.arange(1 - side, side, dtype=torch.float64)
        apart = torch.cartesian_prod(axis, axis) - shifts.unsqueeze(1)
        same |= (apart % side == 0).all(dim=-1)
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


ROUNDING = 128 * 2.0**-53
"""What a distance of two computed points of the unit sphere may err.

Latitudes are off by three roundings of at most π, turns by three of at most 2π: 10 and 19 units.
With 2 of each sine and cosine and one of their product, coordinates are off by 34, 34 and 12, a
point by less than 50, a distance of two by 100 and its own 4; and the chord by less than 16.
"""


@bounded
@pytest.mark.parametrize("index", range(0, 900, 90))
def test_rings_are_as_far_apart_as_they_say(index: int) -> None:
    for size, angle, first in logit_scales.rings()[3 * index : 3 * index + 3]:
        points = [
            (math.sin(at) * math.cos(turn), math.sin(at) * math.sin(turn), math.cos(at))
            for latitude, count in logit_scales.parallels(angle, first)
            for at in (latitude * math.pi / logit_scales.HALF_TURN,)
            for turn in (2 * math.pi * i / count for i in range(count))
        ]
        assert len(points) == size
        nearest = min(
            (math.dist(p, q) for p, q in combinations(points, 2)),
            default=math.inf,
        )
        chord = 2 * math.sin(angle * math.pi / logit_scales.HALF_TURN / 2)
        assert nearest >= chord - ROUNDING
        if size > 1:
            bound, gap = codes.ceiling(3, size), 1 - logit_scales.radians(angle).cos()
            record(ratio=float(gap / bound), dtype="real")
            assert gap.lower() <= bound.upper()


@bounded
@pytest.mark.parametrize("dimension", logit_scales.DIMENSIONS)
@pytest.mark.parametrize("size", [2, 9, 12, 25, 49, 100])
def test_best_gap_is_enclosed(dimension: int, size: int) -> None:
    least, most = logit_scales.best_gap(dimension, size)
    assert 0 < least.lower() <= most.upper()
    if dimension == 2 or size <= 2 * dimension:
        assert least.is_finite()
        assert least.overlaps(most)


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
    assert power(value) == shown


@pytest.mark.parametrize(
    ("value", "down", "up"),
    [
        (0.2339, "0.233", "0.234"),
        (0.5148, "0.514", "0.515"),
        (2.0, "2", "2"),
        (999.2, "999", "1,000"),
        (1000.2, "1,000", "1,001"),
        (2.64e10, "2.6 · 10¹⁰", "2.7 · 10¹⁰"),
        (0.0003925, "0.000392", "0.000393"),
    ],
)
def test_number_is_rounded_down_or_up_where_a_bound_is_shown(
    value: float, down: str, up: str
) -> None:
    assert (power(value, DOWN), power(value, UP)) == (down, up)
