"""The rounding of one head: in fused kernels, and where its sums are so long that one form is left.

That the forms of a head computed at once are those of the pages is the subject of
`test_layer_error_is_certified.py` and `test_attention_is_soft_padding_then_convolution.py`.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
import torch
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from constructions.certificate import gamma, head_rounding
from constructions.formats import FORMATS
from theory.saturated_softmax_is_one_hot import ACCUMULATOR, EXP_ROUNDOFFS
from theory.saturated_softmax_is_one_hot import FORMATS as EXACT_FORMATS
from theory.tools.theta import ball, precision

BITS = 400
LONG = 2**27
"""Keys of whose exponentials float32 makes a sum that is off by more than itself."""

every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
summed_in_float32 = pytest.mark.parametrize("dtype", [d for d in FORMATS if d != torch.float64])
either_way = pytest.mark.parametrize("streamed", [False, True], ids=["at once", "in blocks"])


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Page:
    """The equations of the page of T7 for one softmax over some keys, in balls."""

    def __init__(self, dtype: torch.dtype, keys: int, *, streamed: bool) -> None:
        name = str(dtype).removeprefix("torch.")
        of, sums = EXACT_FORMATS[name], ACCUMULATOR[name]
        self.keys, self.streamed = keys, streamed
        self.u, self.tiny = ball(sums.unit_roundoff), ball(sums.smallest_normal)
        self.eta = ball(sums.smallest_subnormal)
        self.u_w = arb(0) if of == sums else ball(of.unit_roundoff)
        self.eta_w = arb(0) if of == sums else ball(of.smallest_subnormal)
        self.gamma = (1 + self.u) ** keys - 1
        scores = 1 - self.tiny.log()  # S
        more = 1 + ball(Fraction(1, 2**12))
        self.tau = (EXP_ROUNDOFFS + 2 * scores) * self.u * more  # (5)
        if streamed:  # (25)
            rescaled = (1 + self.u) ** ((EXP_ROUNDOFFS + 2) * -(-keys // 32))
            self.tau = (1 + self.tau) * (1 + 2 * scores * self.u * more) * rescaled - 1

    def first(self, seen: arb, largest: arb) -> arb:
        """(26): N_1 in a fused kernel."""
        beta = self.tau + 2 * self.keys * self.tiny + self.gamma
        rho = ((2 * self.u + self.u_w) * (1 + 2 * self.u) + beta) / (1 - beta)
        mu = (1 + self.tau) * (1 + rho) - 1
        z = self.keys * (2 * self.tiny * (1 + rho) + self.eta + self.eta_w)
        relative = (1 + mu) * (1 + self.gamma) * (1 + self.u_w) - 1
        absolute = (1 + self.gamma) * (z + self.keys * self.eta)
        return relative * seen + absolute * largest + 2 * self.keys * self.eta + self.eta_w

    def second(self, mass: arb, largest: arb) -> arb:
        """(11), or (27) in a fused kernel: N_2."""
        computed = (1 + self.tau) * mass + 2 * self.keys * self.tiny
        stored = (1 + self.u) ** 2 * computed + self.keys * self.eta
        return (50 if self.streamed else 26) * (1 + self.gamma) * stored * largest


@every_format
@given(
    exponent=st.integers(-400, 4),
    keys=st.integers(1, 10**5),
    # So that the bound itself does not underflow, nor a number of float16 overflow.
    largest=st.floats(2.0**-100, 2.0**15),
    part=st.floats(0.0, 1.0),
)
def test_rounding_of_a_fused_head_is_that_of_the_page_rounded_up(
    dtype: torch.dtype, exponent: int, keys: int, largest: float, part: float
) -> None:
    seen, mass = largest * part, 2.0**exponent
    coded = head_rounding(
        double(seen), double(largest), double(mass), (keys,), dtype, streamed=True
    )
    with precision(BITS):
        page = Page(dtype, keys, streamed=True)
        first = page.first(ball(Fraction(seen)), ball(Fraction(largest)))
        second = page.second(ball(Fraction(mass)), ball(Fraction(largest)))
        stated = first if first < second else second
        assert arb(coded.item()) >= stated
        # For one softmax the code doubles what underflow loses, and rounds up.
        assert arb(coded.item()) <= 2 * stated * ball(1 + Fraction(1, 2**40))


@either_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(keys=st.integers(1, 10**5), exponent=st.integers(-400, 4))
def test_a_head_is_infinite_from_where_its_sums_may_overflow(
    dtype: torch.dtype, streamed: bool, keys: int, exponent: int
) -> None:
    with precision(BITS):
        page = Page(dtype, keys, streamed=streamed)
        highest = ball(Fraction(torch.finfo(dtype).max))
        # (28): R and N_1 at M = R; T R in a fused kernel, and at the most without one.
        of_keys = keys * (1 + ball(page.u)) ** (keys + 3)
        most = of_keys * (1 + page.tau)
        if not streamed:
            normalised = 1 + page.first(arb(1), arb(1)) - keys * page.eta
            most = normalised if normalised < of_keys else of_keys
        edge = float((highest / most).mid())

    def rounding(largest: float) -> float:
        mass = double(2.0**exponent)
        found = head_rounding(
            double(largest), double(largest), mass, (keys,), dtype, streamed=streamed
        )
        return float(found)

    assert math.isfinite(rounding(edge * (1 - 2.0**-30)))
    assert math.isinf(rounding(min(edge * (1 + 2.0**-30), sys.float_info.max)))


def test_a_sum_of_so_many_keys_may_be_off_by_more_than_itself() -> None:
    assert gamma(LONG, torch.float32) > 1


@summed_in_float32
@either_way
@given(exponent=st.integers(-400, -60), largest=st.floats(2.0**-10, 2.0**10))
def test_over_very_many_keys_the_form_relative_to_the_mass_is_left(
    dtype: torch.dtype, streamed: bool, exponent: int, largest: float
) -> None:
    mass = 2.0**exponent
    coded = {
        head_rounding(
            double(seen), double(largest), double(mass), (LONG,), dtype, streamed=streamed
        ).item()
        for seen in (largest, 0.0)
    }
    assert len(coded) == 1
    with precision(BITS):
        page = Page(dtype, LONG, streamed=streamed)
        stated = page.second(ball(Fraction(mass)), ball(Fraction(largest)))
        found = arb(coded.pop())
        assert stated <= found
        # Growths e^z - 1 with z < 32 are raised by one part in 2^41 at most.
        assert found <= stated * ball(1 + Fraction(1, 2**38))


@summed_in_float32
def test_over_very_many_keys_nothing_is_claimed_of_a_factored_sink(dtype: torch.dtype) -> None:
    one = double(1.0)
    assert head_rounding(one, one, 1e-30, (LONG,), dtype, rescaled=True).item() == math.inf
