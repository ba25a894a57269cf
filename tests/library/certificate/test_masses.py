"""Masses off target, as the gap and the scores bound them: never too small, and hardly too large.

`leak` and `off_target_mass` are the subject of `test_quadratic_scores_select_one_shift.py`.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from flint import arb
from hypothesis import given
from hypothesis import strategies as st

from constructions.certificate import gap_mass
from constructions.certificate.masses import table_mass
from theory.tools.theta import ball, precision

BITS = 200


@pytest.mark.parametrize("height", [None, 0.25, 0.5, 0.875])
@given(sharpness=st.floats(2.0**-20, 2.0**12), keys=st.integers(1, 2**20))
def test_gap_mass_is_at_least_that_of_all_other_keys_at_the_gap(
    sharpness: float, keys: int, height: float | None
) -> None:
    coded = gap_mass(sharpness, keys, sink_height=height)
    with precision(BITS):
        part = 1.0 if height is None else min(height, 1 - height)
        others = keys - 1 if height is None else keys
        mass = others * (-ball(Fraction(sharpness) * Fraction(part))).exp()
        # The factor 1 + 2^-46, and two roundings with it; underflow for each key.
        highest = mass * (1 + ball(Fraction(1, 2**45))) + keys * ball(Fraction(64, 2**1074))
        assert mass <= arb(coded)
        assert arb(coded) <= highest


def mass_of_table(
    scores: list[list[float]], own: list[int], sharpness: float, sink_height: float | None
) -> arb:
    """The largest of all heads: the definition, in balls. With a sink its target may be no key."""
    largest = arb(0)
    for row, peak in zip(scores, own, strict=True):
        others = [ball(Fraction(s)) for k, s in enumerate(row) if k != peak]
        mass = sum((s.exp() for s in others), arb(0))
        if sink_height is not None:
            height = ball(Fraction(sharpness) * Fraction(sink_height))
            without = sum(((s + height).exp() for s in others), arb(0))
            mass = (mass + (-height).exp()).max(without)
        largest = largest.max(mass)
    return largest


@pytest.mark.parametrize("height", [None, 0.25, 0.5, 0.875])
@given(data=st.data(), sharpness=st.floats(2.0**-10, 2.0**9))
def test_table_mass_is_at_least_that_of_the_scores(
    data: st.DataObject, sharpness: float, height: float | None
) -> None:
    heads, places = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 6))
    below = st.floats(1.0, 8.0).map(lambda factor: -factor * sharpness)
    scores = [data.draw(st.lists(below, min_size=places, max_size=places)) for _ in range(heads)]
    own = [data.draw(st.integers(0, places - 1)) for _ in range(heads)]
    table = torch.tensor(scores, dtype=torch.float64)
    elsewhere = torch.ones_like(table, dtype=torch.bool)
    elsewhere[range(heads), own] = False
    coded = table_mass(table, elsewhere, sharpness, 0.0, sink_height=height)
    with precision(BITS):
        mass = mass_of_table(scores, own, sharpness, height)
        assert mass <= arb(coded)
