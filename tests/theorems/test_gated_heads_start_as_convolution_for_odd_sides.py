"""With open gates, gated positional heads converge to a convolution with replicate borders as their locality grows if their centres are integers, as those of an odd side are, and never to one of a single tap if they are half-integers, as those of an even side are.

T19, `docs/theorems/gated_heads_start_as_convolution_for_odd_sides.md`. Heads are formed here from
their scores, in fractions or balls; timm's own class is in `tests/stock/test_gpsa.py`.
"""  # noqa: E501, the claim is one sentence

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from flint import arb, fmpq_mat
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ledger import record
from tests.support.proofs import claimed_equations, discharged_equations
from theory import gated_heads_start_as_convolution_for_odd_sides as theory
from theory.tools.proof import ProofError
from theory.tools.theta import ball, leak_enclosure, precision

SLUG = "gated_heads_start_as_convolution_for_odd_sides"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

HALF = Fraction(1, 2)
Place = tuple[int, int]
Kernel = dict[Place, Fraction]

small = st.integers(-9, 9).map(Fraction)


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Heads, from their scores -------------------------------------------------------------------------


def centres(side: int) -> list[tuple[Fraction, Fraction]]:
    """Those of the layer's own initialisation: half-integers for an even side."""
    middle = Fraction(side - 1, 2) if side % 2 == 0 else Fraction(side // 2)
    return [(i - middle, j - middle) for i, j in product(range(side), repeat=2)]


def weights(
    shape: Place, query: Place, centre: Sequence[Fraction], base: Fraction
) -> dict[Place, Fraction]:
    """Softmax of -s|δ - c|² in fractions: base = e^-s/4, of which distances are whole powers."""
    powers = {
        key: base
        ** int(4 * sum((k - q - c) ** 2 for k, q, c in zip(key, query, centre, strict=True)))
        for key in product(range(shape[0]), range(shape[1]))
    }
    total = sum(powers.values())
    return {key: power / total for key, power in powers.items()}


def nearest(
    shape: Place, query: Place, centre: Sequence[Fraction]
) -> tuple[list[Place], Fraction | None]:
    """The keys of least distance from the target, and by how much the next ones are farther."""
    distance = {
        key: sum((k - q - c) ** 2 for k, q, c in zip(key, query, centre, strict=True))
        for key in product(range(shape[0]), range(shape[1]))
    }
    least = min(distance.values())
    others = [d for d in distance.values() if d > least]
    winners = [key for key, d in distance.items() if d == least]
    return winners, Fraction(min(others) - least) if others else None


shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@exact
@given(data=st.data(), shape=shapes, shift=st.tuples(st.integers(-7, 7), st.integers(-7, 7)))
def test_integer_centre_is_the_clamped_target_and_leads_by_one(
    data: st.DataObject, shape: Place, shift: Place
) -> None:
    query = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    winners, lead = nearest(shape, (query[0], query[1]), [Fraction(c) for c in shift])
    clamped = tuple(min(max(q + c, 0), n - 1) for q, c, n in zip(query, shift, shape, strict=True))
    assert winners == [clamped]
    assert lead is None or lead >= 1
    record()


@exact
@pytest.mark.parametrize("side", range(1, 8))
def test_centres_are_integers_for_odd_sides_alone(side: int) -> None:
    assert all(c.denominator == (1 if side % 2 else 2) for pair in centres(side) for c in pair)
    assert len(set(centres(side))) == side * side


@exact
@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("base", [Fraction(1, 2), Fraction(9, 10), Fraction(1, 50)], ids=str)
def test_even_head_has_at_most_a_quarter_wherever_its_four_pixels_are(
    side: int, base: Fraction
) -> None:
    shape = (5, 6)
    for centre, query in product(centres(side), product(*map(range, shape))):
        target = [q + c for q, c in zip(query, centre, strict=True)]
        found = weights(shape, (query[0], query[1]), centre, base)
        if all(0 < t < n - 1 for t, n in zip(target, shape, strict=True)):
            winners, lead = nearest(shape, (query[0], query[1]), centre)
            assert len(winners) == 4
            assert lead is not None
            assert lead >= 2
            assert max(found.values()) == found[winners[0]] < Fraction(1, 4)


@exact
@given(
    centre=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    base=st.fractions(Fraction(1, 100), Fraction(99, 100)),
    reach=st.integers(1, 3),
)
def test_even_head_is_blind_to_stripes_at_any_locality(
    centre: Place, base: Fraction, reach: int
) -> None:
    # A grid that the reflection about the target keeps: so are all weights of the infinite one.
    shape = (2 * reach, 2 * reach)
    offset = [Fraction(c) + HALF for c in centre]
    query = tuple(reach - 1 - c for c in centre)
    found = weights(shape, (query[0], query[1]), offset, base)
    for axis in (0, 1):
        assert theory.stripes(found, axis) == 0
    record()


# The floor ----------------------------------------------------------------------------------------


def limit_kernel(side: int, taps: Sequence[Fraction]) -> Kernel:
    """What the heads of an even side make in the limit: each a mean of four pixels."""
    kernel: Kernel = {}
    for (a, b), tap in zip(centres(side), taps, strict=True):
        for i, j in product((-HALF, HALF), repeat=2):
            place = (int(a + i), int(b + j))
            kernel[place] = kernel.get(place, Fraction(0)) + tap / 4
    return kernel


@exact
@given(data=st.data(), side=st.sampled_from([2, 4]))
def test_no_even_layer_comes_nearer_than_the_alternating_sum(
    data: st.DataObject, side: int
) -> None:
    # In the limit, over all values: the kernel is drawn, and so are the heads' matrices.
    taps = data.draw(st.lists(small, min_size=side**2, max_size=side**2))
    layer = limit_kernel(side, taps)
    places = data.draw(st.lists(st.sampled_from(sorted(layer)), min_size=1, unique=True))
    kernel = {place: data.draw(small) for place in places}
    error = sum(
        abs(kernel.get(d, Fraction(0)) - layer.get(d, Fraction(0))) for d in {*kernel, *layer}
    )
    assert error >= max(abs(theory.stripes(kernel, axis)) for axis in (0, 1))
    record()


@bounded
@given(
    base=st.fractions(Fraction(1, 50), Fraction(9, 10), max_denominator=100),
    taps=st.lists(small, min_size=4, max_size=4),
)
def test_identity_is_missed_by_one_at_finite_locality(base: Fraction, taps: list[Fraction]) -> None:
    # Weights on the infinite grid are products over the axes, whose tails a geometric series
    # bounds: what is cut off may count for the layer.
    reach = 5
    with precision(256):
        x = ball(base)  # e^-s/4
        axis = {n: x ** ((2 * n - 1) ** 2) for n in range(1 - reach, reach + 1)}  # centre 1/2
        rest = arb(0).union(2 * x ** ((2 * reach + 1) ** 2) / (1 - x))
        total = sum(axis.values(), arb(0)) + rest
        layer: dict[Place, arb] = {}
        for (a, b), tap in zip(centres(2), taps, strict=True):
            scale = ball(tap) / total**2
            for (m, left), (n, right) in product(axis.items(), repeat=2):
                place = (m - int(a < 0), n - int(b < 0))
                layer[place] = layer.get(place, arb(0)) + scale * left * right
        error = sum((abs(int(place == (0, 0)) - g) for place, g in layer.items()), arb(0))
        cut_off = 2 * (rest / total) * ball(sum(map(abs, taps), Fraction(0)))
        assert not error + cut_off < 1
        record(ratio=float((1 / (error + cut_off)).lower()))


@exact
@given(data=st.data(), side=st.sampled_from([1, 2, 3]))
def test_limit_kernels_are_those_whose_alternating_rows_and_columns_vanish(
    data: st.DataObject, side: int
) -> None:
    # The linear system for the taps of (K + 1)² numbers has a solution just if they do.
    count = side + 1
    box = np.zeros((count**2, side**2), dtype=int)
    for (i, j), (a, b) in product(product(range(side), repeat=2), product((0, 1), repeat=2)):
        box[(i + a) * count + j + b, i * side + j] = 1
    if data.draw(st.booleans(), label="one of them"):
        taps = data.draw(st.lists(st.integers(-3, 3), min_size=side**2, max_size=side**2))
        kernel = (box @ np.array(taps)).tolist()
    else:
        kernel = data.draw(st.lists(st.integers(-2, 2), min_size=count**2, max_size=count**2))
    rows = [[Fraction(v) for v in kernel[i * count : (i + 1) * count]] for i in range(count)]
    augmented = fmpq_mat([[int(v) for v in row] + [k] for row, k in zip(box, kernel, strict=True)])
    solvable = augmented.rank() == fmpq_mat(box.tolist()).rank()
    assert solvable == theory.divisible(rows)


# Gates --------------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("name", theory.OPEN)
def test_gate_opens_at_the_stated_integer_in_torch(name: str) -> None:
    dtype, least = getattr(torch, name), theory.OPEN[name]
    gates = torch.tensor([least - 1.0, float(least), 1024.0], dtype=dtype).repeat(40)
    shut, opened, used = gates.sigmoid().view(40, 3).unbind(1)  # every vector lane
    assert (shut < 1).all()
    assert (opened == 1).all()
    assert (used == 1).all()


@bounded
@given(
    locality=st.integers(1, 12),
    gate=st.fractions(-3, 6),
    content=st.lists(st.integers(0, 9), min_size=25, max_size=25).filter(any),
)
def test_off_target_mass_is_that_of_gate_and_leak(
    locality: int, gate: Fraction, content: list[int]
) -> None:
    with precision(128):
        open_part = 1 / (1 + (-ball(gate)).exp())
        query, grid = (2, 2), list(product(range(5), repeat=2))
        scores = [
            (-arb(locality) * sum((k - q) ** 2 for k, q in zip(key, query, strict=True))).exp()
            for key in grid
        ]
        target = grid.index(query)
        positional = scores[target] / sum(scores, arb(0))
        by_content = ball(Fraction(content[target], sum(content)))
        off = 1 - (open_part * positional + (1 - open_part) * by_content)
        bound = (
            (1 - open_part)
            + open_part * leak_enclosure(locality, 2, bits=128)
            - (1 - open_part) * by_content
        )
        assert not off > bound
        record(ratio=float((off / bound).mid()) if bound > 0 else 0.0)


# Ranks --------------------------------------------------------------------------------------------


@exact
@given(
    data=st.data(),
    width=st.integers(1, 4),
    inner=st.integers(1, 3),
)
def test_head_applies_a_matrix_of_at_most_its_width_in_rank(
    data: st.DataObject, width: int, inner: int
) -> None:
    draw = st.lists(st.integers(-4, 4), min_size=width * inner, max_size=width * inner)
    left, right = fmpq_mat(width, inner, data.draw(draw)), fmpq_mat(inner, width, data.draw(draw))
    assert (left * right).rank() <= min(inner, width)


# What the checks reject ---------------------------------------------------------------------------


@control
def test_integer_centres_see_stripes_and_the_identity() -> None:
    found = weights((4, 4), (1, 1), (Fraction(0), Fraction(0)), Fraction(1, 100))
    assert abs(theory.stripes(found, 0)) > HALF
    assert max(found.values()) > Fraction(99, 100)


@control
@pytest.mark.parametrize("side", [2, 4])
def test_floor_is_not_one_of_odd_sides(side: int) -> None:
    # One head of an integer centre is the identity, whose alternating sum is 1.
    identity = {(0, 0): Fraction(1)}
    assert abs(theory.stripes(identity, 0)) == 1
    assert (Fraction(0), Fraction(0)) in centres(side + 1)
    assert (Fraction(0), Fraction(0)) not in centres(side)


@control
@pytest.mark.parametrize("kernel", [[[1, 0], [0, -1]], [[1, 1], [0, 0]], [[1, 0], [0, 1]]], ids=str)
def test_kernels_that_alternate_along_one_axis_at_most_are_not_limits(
    kernel: list[list[int]],
) -> None:
    assert not theory.divisible([[Fraction(v) for v in row] for row in kernel])
    assert theory.divisible([[Fraction(1), Fraction(1)], [Fraction(1), Fraction(1)]])


@control
@pytest.mark.parametrize("name", theory.FORMATS)
@pytest.mark.parametrize("by", [-1, 1])
def test_proof_rejects_another_gate(name: str, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(theory.OPEN, name, theory.OPEN[name] + by)
    with pytest.raises(ProofError, match=rf"equation \(6\).*{name}"):
        theory.prove()


@control
def test_even_head_at_a_corner_has_more_than_a_quarter() -> None:
    # Why (8) asks for the four pixels: beyond a corner one of them is left.
    found = weights((3, 3), (0, 0), (-HALF, -HALF), Fraction(1, 100))
    assert found[0, 0] > Fraction(99, 100)
