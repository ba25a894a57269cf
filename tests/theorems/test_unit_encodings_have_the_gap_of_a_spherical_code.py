"""Features and queries of norm at most 1 in R^D that select N shifts have a gap in score of at most 1 − cos φ_D(N), and the best have it, φ_D(N) the largest least angle between N points of the unit sphere.

T12, `docs/theorems/unit_encodings_have_the_gap_of_a_spherical_code.md`. Features and queries are
vectors of fractions, and their gap is exact; it is held against balls that contain the bounds.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import sympy as sp
import torch
from flint import arb
from hypothesis import assume, given
from hypothesis import strategies as st

from constructions.encodings import Encoding, Periodic, Quadratic
from constructions.geometry.lattice import Lattice
from tests.support.ledger import record
from tests.support.proofs import claimed_equations, discharged_equations
from theory import unit_encodings_have_the_gap_of_a_spherical_code as theory
from theory.tools import spherical_codes as codes
from theory.tools.spherical_codes import CODES, SHARP, Gram, ceiling, gap_of
from theory.tools.theta import BITS, ball, precision

SLUG = "unit_encodings_have_the_gap_of_a_spherical_code"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_code = pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.__name__)

Vector = tuple[Fraction, ...]
Configuration = tuple[list[Vector], list[Vector], list[Vector]]  # features, queries, others
Floats = tuple[list[list[float]], list[list[float]], list[list[float]]]


# Configurations -----------------------------------------------------------------------------------


def dot(x: Sequence[Fraction], y: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def gap(configuration: Configuration) -> Fraction:
    """Equation (1)."""
    features, queries, others = configuration
    return min(
        dot(query, feature) - dot(query, other)
        for h, (feature, query) in enumerate(zip(features, queries, strict=True))
        for other in (*features[:h], *features[h + 1 :], *others)
    )


def shortened(vector: Sequence[float | Fraction]) -> Vector:
    """The vector in fractions, not longer than 1, and hardly shorter than it was."""
    exactly = tuple(Fraction(entry) for entry in vector)
    square = dot(exactly, exactly)
    if square <= 1:
        return exactly
    root = math.isqrt(math.ceil(square * 10**40)) + 1  # above 10^20 times the norm
    return tuple(entry * Fraction(10**20, root) for entry in exactly)


def points_of(gram: Gram, dimension: int | None = None) -> list[list[float]]:
    """Vectors with these inner products, up to rounding, and of that dimension: the least."""
    values, vectors = np.linalg.eigh(np.array(gram, dtype=float))  # in ascending order
    kept = slice(-(codes.dimension_of(gram) if dimension is None else dimension), None)
    found: list[list[float]] = (vectors[:, kept] * np.sqrt(values[kept])).tolist()
    return found


def polygon(size: int) -> list[list[float]]:
    return [
        [math.cos(2 * math.pi * i / size), math.sin(2 * math.pi * i / size)] for i in range(size)
    ]


def icosahedron() -> Gram:
    """In fractions, up to rounding."""
    cosines = np.eye(6) + np.array(codes.conference_matrix()) / math.sqrt(5)
    signed = np.block([[cosines, -cosines], [-cosines, cosines]])
    return [[Fraction(entry) for entry in row] for row in signed]


def below_others(size: int) -> Floats:
    """The configuration of (14), for two shifts or more."""
    t = float(codes.height_beside_others(size))
    wide = math.sqrt(t * (2 - t))
    directions = points_of(codes.simplex(size))
    features = [[t - 1, *(wide * c for c in u)] for u in directions]
    queries = [[wide, *((size - 1) * t * c for c in u)] for u in directions]
    lengths = [math.hypot(*query) for query in queries]
    unit = [[c / length for c in q] for q, length in zip(queries, lengths, strict=True)]
    return features, unit, [[-1.0, *(0.0 for _ in directions[0])]]


def bases() -> list[Floats]:
    """The best configurations that are known: without others, and with others at the centre."""
    alone = [polygon(size) for size in (5, 7, 9)]
    alone += [points_of(g) for g in (codes.nine_points(), codes.half_cube())]
    alone += [points_of(icosahedron(), 3)]
    alone += [points_of(codes.cross_polytope(d)) for d in (2, 3)]
    alone += [points_of(codes.simplex(n)) for n in (2, 3, 4, 5)]
    centred = [[[0.0] * len(code[0])] for code in alone]
    return [
        *((code, code, []) for code in alone),
        *((code, code, others) for code, others in zip(alone, centred, strict=True)),
        *(below_others(size) for size in (2, 3, 4)),
    ]


def name_of(base: Floats) -> str:
    beside = " beside others" if base[2] else ""
    return f"{len(base[0])} in {len(base[0][0])}d{beside}"


BASES = bases()
PUSHES = [0.0, 2.0**-40, 1e-6, 1e-3, 0.03, 0.3]
tiny = st.sampled_from(PUSHES)
entries = st.integers(-16, 16).map(lambda n: Fraction(n, 16))


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Any rational vectors of norm at most 1, or the best ones known with a push each."""
    if draw(st.booleans()):
        dimension, size = draw(st.integers(1, 4)), draw(st.integers(1, 7))
        others = draw(st.integers(0 if size > 1 else 1, 2))
        vector = st.tuples(*[entries] * dimension).map(shortened)
        found = [draw(st.lists(vector, min_size=n, max_size=n)) for n in (size, size, others)]
        return found[0], found[1], found[2]
    base, far = draw(st.sampled_from(BASES)), draw(tiny)
    whole = [list(vector) for part in base for vector in part]
    pushes = draw(st.lists(st.integers(-8, 8), min_size=8, max_size=40))
    places = [(i, j) for i in range(len(whole)) for j in range(len(whole[0]))]
    for (i, j), push in zip(places, pushes * len(places), strict=False):
        whole[i][j] += far * push / 8
    vectors = [shortened(vector) for vector in whole]
    n = len(base[0])
    return vectors[:n], vectors[n : 2 * n], vectors[2 * n :]


def bound_of(configuration: Configuration) -> arb:
    features, _, others = configuration
    return ceiling(len(features[0]), len(features), others=bool(others))


def within(number: Fraction, bound: arb) -> bool:
    """Whether the number is at most some number of the ball."""
    return bool(ball(number) <= bound.upper())


# The proof, and the bound -------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@bounded
@given(configuration=configurations())
def test_no_configuration_has_a_gap_above_the_bound(configuration: Configuration) -> None:
    found = gap(configuration)
    with precision(BITS):
        bound = bound_of(configuration)
        assert within(found, bound)
        if bound > 0:
            record(ratio=max(0.0, float(found) / float(bound)), dtype="rational")


@bounded
@given(configuration=configurations())
def test_points_on_the_sphere_of_radius_two_are_as_far_apart_as_the_gap_says(
    configuration: Configuration,
) -> None:
    # Equations (2) to (5).
    found = gap(configuration)
    assume(found > 0)
    features, queries, _ = configuration
    with precision(BITS):
        moved = []
        for feature, query in zip(features, queries, strict=True):
            norm = ball(dot(query, query)).sqrt()
            v, a = [ball(c) / norm for c in query], [ball(c) for c in feature]
            along = sum((x * y for x, y in zip(v, a, strict=True)), arb(0))
            square = ball(dot(feature, feature))
            length = (along**2 + 4 - square).sqrt() - along  # of v, so that |a + length v| = 2
            assert length.upper() >= 1
            moved.append([x + length * y for x, y in zip(a, v, strict=True)])
        for p, q in combinations(moved, 2):
            distance = sum(((x - y) * (x - y) for x, y in zip(p, q, strict=True)), arb(0))
            assert distance.upper() >= 8 * ball(found)


def to_hull(point: Vector, others: Sequence[Vector]) -> Fraction:
    """The squared distance of a point of the plane from the convex hull of others."""

    def turn(a: Vector, b: Vector, c: Vector) -> Fraction:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    for a, b, c in combinations(others, 3):
        turns = turn(a, b, point), turn(b, c, point), turn(c, a, point)
        if turn(a, b, c) and (min(turns) >= 0 or max(turns) <= 0):
            return Fraction(0)
    squares = []
    for a, b in product(others, repeat=2):
        side, way = (
            [y - x for x, y in zip(a, b, strict=True)],
            [p - x for x, p in zip(a, point, strict=True)],
        )
        along = dot(way, side) / dot(side, side) if any(side) else Fraction(0)
        share = min(max(along, Fraction(0)), Fraction(1))
        rest = [w - share * s for w, s in zip(way, side, strict=True)]
        squares.append(dot(rest, rest))
    return min(squares)


disc = st.tuples(entries, entries).map(shortened)


@bounded
@given(
    features=st.one_of(
        st.lists(disc, min_size=2, max_size=6),
        st.tuples(st.integers(3, 6), tiny, st.lists(entries, min_size=12, max_size=12)).map(
            lambda drawn: [
                shortened([c + drawn[1] * float(p) for c, p in zip(point, pushes, strict=True)])
                for point, pushes in zip(
                    polygon(drawn[0]), zip(drawn[2][::2], drawn[2][1::2], strict=True), strict=False
                )
            ]
        ),
    ),
    other=st.one_of(st.none(), disc),
)
def test_best_queries_in_the_plane_stay_below_the_bound(
    features: list[Vector], other: Vector | None
) -> None:
    # The best gap of given features is their least distance from the hull of the others.
    others = [] if other is None else [other]
    square = min(
        to_hull(a, [*features[:h], *features[h + 1 :], *others]) for h, a in enumerate(features)
    )
    with precision(BITS):
        bound = ceiling(2, len(features), others=bool(others))
        assert within(square, bound**2)
        record(ratio=math.sqrt(square) / float(bound), dtype="rational")


# The best configurations --------------------------------------------------------------------------


@exact
@every_code
def test_code_is_its_own_queries_and_has_its_gap(code: codes.CodeMaker) -> None:
    gram = code()
    (dimension, size) = next(key for key, value in CODES.items() if value is code)
    assert len(gram) == size
    assert codes.dimension_of(gram) == dimension
    assert all(
        gram[i][i] == 1 and gram[i][j] == gram[j][i] for i in range(size) for j in range(size)
    )
    assert within(gap_of(gram), ceiling(dimension, size))
    if (dimension, size) in SHARP:
        assert ball(gap_of(gram)).overlaps(ceiling(dimension, size))
        assert 1 - gap_of(gram) == Fraction(str(SHARP[dimension, size][0]))


@exact
@pytest.mark.parametrize("dimension", range(2, 8))
def test_small_codes_attain_the_bound_exactly(dimension: int) -> None:
    for size in range(2, dimension + 2):
        assert gap_of(codes.simplex(size)) == 1 + Fraction(1, size - 1)
        assert codes.dimension_of(codes.simplex(size)) == size - 1
    cross = codes.cross_polytope(dimension)
    for size in range(dimension + 2, 2 * dimension + 1):
        assert gap_of([row[:size] for row in cross[:size]]) == 1 == ceiling(dimension, size)


@exact
@pytest.mark.parametrize("dimension", range(3, 7))
def test_pairs_of_signed_axes_have_half_a_unit_of_gap(dimension: int) -> None:
    gram = codes.roots(dimension)
    assert len(gram) == 2 * dimension * (dimension - 1)
    assert codes.dimension_of(gram) == dimension
    assert gap_of(gram) == Fraction(1, 2)
    assert within(Fraction(1, 2), ceiling(dimension, len(gram)))


@bounded
@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_best_configuration_is_nearer_to_the_bound_than_the_least_push(base: Floats) -> None:
    # So that what is drawn beside it is drawn around the best.
    a, v, b = ([shortened(vector) for vector in part] for part in base)
    found, bound = gap((a, v, b)), bound_of((a, v, b))
    assert within(found, bound)
    record(ratio=float(found) / float(bound), dtype="rational")
    if (len(a[0]), len(a)) != (3, 9):  # there the bound is that of Fejes Tóth, which is not exact
        assert ball(found) > bound - ball(min(push for push in PUSHES if push))


@exact
@pytest.mark.parametrize("dimension", range(2, 9))
def test_value_changes_where_the_table_says(dimension: int) -> None:
    beside = [ceiling(dimension, n, others=True) for n in range(1, 2 * dimension + 2)]
    alone = [ceiling(dimension, n) for n in range(2, 2 * dimension + 2)]
    assert all(found > 1 for found in beside[:dimension])
    assert all(found == 1 for found in beside[dimension:-1])
    assert all(found > 1 for found in alone[:dimension])
    assert all(found == 1 for found in alone[dimension:-1])
    if dimension == 2:
        assert beside[-1] < 1
        assert alone[-1] < 1


@exact
def test_one_dimension_tells_two_shifts_apart() -> None:
    assert [ceiling(1, n) for n in (2, 3, 9)] == [2, 0, 0]
    assert [ceiling(1, n, others=True) for n in (1, 2, 3)] == [2, 1, 0]


@bounded
@pytest.mark.parametrize("size", [2, 3, 4, 9, 100])
def test_height_beside_others_solves_its_equation(size: int) -> None:
    # Equation (13); two shifts and another are a triangle, the square of whose gap is 64/27.
    with precision(BITS):
        m, t = size * (size - 2), codes.height_beside_others(size)
        value = m * t * t - (m - 3) * t - 4
        assert value.is_finite()
        assert value.contains(0)
        assert codes.gap_beside_others(2).overlaps((arb(64) / 27).sqrt())


@bounded
@given(size=st.integers(2, 400))
def test_polygon_attains_the_bound_of_the_plane(size: int) -> None:
    # Equation (15).
    with precision(BITS):
        gaps = [2 * (arb.pi() * k / size).sin() ** 2 for k in range(1, size)]
        assert all(found.upper() >= codes.polygon_gap(size).lower() for found in gaps)
        assert gaps[0].overlaps(ceiling(2, size))


@bounded
@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 13])
def test_parallel_of_a_sphere_attains_the_bound_beside_others(size: int) -> None:
    # Equation (14), in balls, from the inner products of u_h.
    with precision(BITS):
        t = codes.height_beside_others(size)
        wide = (t * (2 - t)).sqrt()
        norm = (wide**2 + ((size - 1) * t) ** 2).sqrt()
        own = wide * (t - 1) + (size - 1) * t * wide
        to_shift = wide * (t - 1) - t * wide  # <u_h, u_j> = -1/(size - 1)
        to_other = -wide
        best = codes.gap_beside_others(size)
        assert ((own - to_shift) / norm).overlaps(best)
        assert ((own - to_other) / norm).overlaps(best)
        assert 1 + arb(1) / size < best < 2


@bounded
@pytest.mark.parametrize(("dimension", "size"), SHARP)
def test_best_gap_is_no_larger_with_more_shifts(dimension: int, size: int) -> None:
    with precision(BITS):
        for others in (False, True):
            bounds = [ceiling(dimension, n, others=others) for n in range(2, size + 20)]
            assert all(b.lower() <= a.upper() for a, b in pairwise(bounds))
            assert bounds[size - 3] > bounds[size - 2]  # proven for this many points, not for fewer
        assert all(
            codes.known_gap(dimension, n).lower() <= ceiling(dimension, n, others=True).upper()
            for n in range(dimension + 1, size + 20)
        )


# Caps ---------------------------------------------------------------------------------------------


@bounded
@given(dimension=st.integers(2, 40), theta=st.floats(1e-3, 1.57))
def test_part_of_a_cap_is_between_its_bounds(dimension: int, theta: float) -> None:
    # Equation (16), against FLINT's incomplete beta function.
    with precision(128):
        sine = ball(theta).sin()
        part = (sine**2).beta_lower(arb(dimension - 1) / 2, arb(1) / 2, regularized=1) / 2
        power = sine ** (dimension - 1)
        assert (power / codes.cap_constant(dimension)).lower() <= part.upper()
        assert part.lower() <= (power / 2).upper()


@bounded
@given(dimension=st.integers(2, 200))
def test_constant_of_the_caps_is_a_quotient_of_gammas(dimension: int) -> None:
    with precision(BITS):
        half = arb(1) / 2
        gammas = (dimension * half + half).gamma() / (dimension * half).gamma()
        assert (2 * arb.pi().sqrt() * gammas).overlaps(codes.cap_constant(dimension))


@bounded
@given(size=st.integers(3, 10_000))
def test_polygon_lies_between_the_bounds_of_the_caps(size: int) -> None:
    # Equation (18).
    with precision(BITS):
        assert codes.cap_floor(2, size) <= codes.polygon_gap(size) <= codes.cap_ceiling(2, size)


@bounded
@pytest.mark.parametrize("size", [3, 4, 6, 12])
def test_bound_of_fejes_toth_is_attained(size: int) -> None:
    best = {3: arb(3) / 2, 4: arb(4) / 3, 6: arb(1), 12: 1 - 1 / arb(5).sqrt()}
    assert codes.fejes_toth_ceiling(size).is_finite()
    assert codes.fejes_toth_ceiling(size).overlaps(best[size])


# Kernels of the sphere ----------------------------------------------------------------------------


@exact
@given(
    drawn=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.tuples(*[st.integers(-9, 9)] * n), min_size=1, max_size=6)
    )
)
def test_kernels_sum_to_no_less_than_zero(drawn: list[tuple[int, ...]]) -> None:
    # Equation (19); rational points of the sphere by stereographic projection.
    points = []
    for place in drawn:
        square = sum(c * c for c in place)
        points.append(tuple(Fraction(e, square + 1) for e in (*(2 * c for c in place), square - 1)))
    t = sp.Symbol("t")
    for degree in range(1, 5):
        coefficients = sp.Poly(codes.harmonic(degree, len(points[0]), t), t).all_coeffs()
        powers = [Fraction(int(c.p), int(c.q)) for c in coefficients]
        total = Fraction(0)
        for x, y in product(points, repeat=2):
            value = Fraction(0)
            for coefficient in powers:
                value = value * dot(x, y) + coefficient
            total += value
        assert total >= 0


# Logits -------------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("sides", [(2,), (9,), (3, 3), (7, 7), (2, 2, 2)])
def test_absolute_quadratic_features_are_as_long_as_stated(sides: tuple[int, ...]) -> None:
    # Equation (23), in units in which ρ² is an integer: keys at odd or even coordinates, doubled.
    n, d = sides[0], len(sides)
    keys = list(product(range(1 - n, n, 2), repeat=d))  # 2 k
    rho = Fraction(d * (n - 1) ** 2, 4)  # ρ²
    norms = [Fraction(sum(c * c for c in k), 4) for k in keys]
    features = max((u - rho / 2) ** 2 / rho + u for u in norms)
    queries = max(rho + 4 * u for u in norms)
    assert features * queries <= (Fraction(5, 2) * rho) ** 2
    with precision(BITS):
        needed = 1 / ceiling(d + 1, len(keys))
        assert needed**2 <= ball(features * queries)  # the gap is 1


def scores(encoding: Encoding, shifts: torch.Tensor, grid: Lattice) -> torch.Tensor:
    """Every head's score at every displacement between two pixels of the grid."""
    sides = [torch.arange(1 - n, n, dtype=torch.float64) for n in grid.shape]
    displacements = torch.cartesian_prod(*sides).reshape(-1, grid.dimension)
    features, queries = encoding.encode(displacements, shifts, grid)
    return queries @ features.T


@bounded
@pytest.mark.parametrize("encoding", [Quadratic(), Periodic()], ids=["quadratic", "periodic"])
@pytest.mark.parametrize("shape", [(7,), (16,), (5, 5), (8, 12)])
def test_spread_of_scores_is_at_least_what_the_dimension_allows(
    encoding: Encoding, shape: tuple[int, ...]
) -> None:
    # Equation (24).
    grid, d = Lattice.box(shape), len(shape)
    shifts = torch.cartesian_prod(*[torch.arange(-1.0, 2.0).double()] * d).reshape(-1, d)
    found = scores(encoding, shifts, grid)
    dimension = encoding.encode(shifts, shifts, grid)[0].shape[1]
    spread = (found.amax(1) - found.amin(1)).max().item()
    with precision(BITS):
        # The difference of two computed scores, each within its error, is rounded once.
        scores_err = encoding.score_error(shifts, grid) if isinstance(encoding, Periodic) else 0.0
        largest = ball(spread) * (1 + arb(2) ** -53) + 2 * ball(scores_err)
        largest /= ball(encoding.gap(shifts, grid))
        needed = codes.spread_per_norm(dimension) / ceiling(dimension, len(shifts))
        record(ratio=float((needed / largest).upper()), dtype=torch.float64)
        assert needed <= largest


# What the checks reject ---------------------------------------------------------------------------


def of_points(points: Sequence[Sequence[float]], *others: Sequence[float]) -> Configuration:
    """Vectors as their own queries, as they are."""
    vectors = [tuple(Fraction(c) for c in point) for point in points]
    return vectors, vectors, [tuple(Fraction(c) for c in other) for other in others]


@control
@pytest.mark.parametrize("size", [3, 5, 9])
def test_polygon_with_a_vertex_doubled_has_no_gap(size: int) -> None:
    vertices = polygon(size)
    assert gap(of_points(vertices)) > 0
    assert gap(of_points([*vertices, vertices[0]])) <= 0


@control
@pytest.mark.parametrize("size", [3, 5, 9])
@pytest.mark.parametrize("longer", ["features", "queries"])
def test_vectors_longer_than_one_exceed_the_bound(size: int, longer: str) -> None:
    features, queries, _ = of_points(polygon(size))
    long = [tuple(c * Fraction(101, 100) for c in vector) for vector in features]
    beaten: Configuration = (long, queries, []) if longer == "features" else (features, long, [])
    assert not within(gap(beaten), bound_of(beaten))


@control
@pytest.mark.parametrize("size", [4, 5, 9, 25])
def test_bound_for_one_shift_more_is_no_bound(size: int) -> None:
    assert not within(gap(of_points(polygon(size))), ceiling(2, size + 1))


@control
@every_code
def test_bound_for_two_dimensions_is_none_for_more(code: codes.CodeMaker) -> None:
    gram = code()
    assert not within(gap_of(gram), ceiling(2, len(gram)))


@control
@pytest.mark.parametrize("size", [2, 3, 4])
def test_simplex_with_one_vertex_more_is_not_the_best_beside_others(size: int) -> None:
    features, queries, others = below_others(size)
    a, v, b = ([shortened(vector) for vector in part] for part in (features, queries, others))
    better = gap((a, v, b))
    assert better > 1 + Fraction(1, size)
    assert not within(better, 1 + arb(1) / size)


@control
@pytest.mark.parametrize("size", [3, 4, 5])
def test_gap_of_the_simplex_does_not_survive_another_displacement(size: int) -> None:
    points = points_of(codes.simplex(size))
    found = gap(of_points(points, [0.0] * len(points[0])))
    assert gap(of_points(points)) > 1 + Fraction(1, size)
    # A feature's own square, which is 1 but for rounding, is all that a centre leaves.
    assert found <= min(dot(p, p) for p in of_points(points)[0])
    assert not within(gap(of_points(points)), ceiling(size - 1, size, others=True))


@control
def test_code_of_the_ball_is_farther_apart_than_one_of_the_sphere_and_has_no_gap() -> None:
    # The centre of a hexagon: without the step (4) the proof would only bound such packings.
    hexagon = [*polygon(6), [0.0, 0.0]]
    nearest = min(math.dist(p, q) for p, q in combinations(hexagon, 2))
    assert nearest > 2 * math.sin(math.pi / 7)
    features = [shortened(point) for point in hexagon]
    assert to_hull(features[-1], features[:-1]) == 0


@control
@pytest.mark.parametrize("size", [3, 10, 100])
def test_caps_of_twice_the_radius_give_no_bound(size: int) -> None:
    # They overlap: N σ(φ) <= 1 would make the bound of (18) a fourth.
    assert codes.cap_ceiling(2, size) / 4 < codes.polygon_gap(size)


@control
@pytest.mark.parametrize(("dimension", "size"), SHARP)
def test_polynomial_for_one_dimension_more_bounds_another_number(dimension: int, size: int) -> None:
    t = sp.Symbol("t")
    f = sp.expand(sp.Mul(*(t - root for root in SHARP[dimension, size])))

    def holds(d: int) -> bool:
        parts = codes.harmonic_parts(f, t, d)
        return bool(
            sp.expand(f.subs(t, 1) - size * parts[0]) == 0
            and all(part.is_nonnegative is True for part in parts)
        )

    assert holds(dimension)
    assert not holds(dimension + 1)
    assert not holds(dimension - 1)


@control
def test_matrix_that_is_no_gram_matrix_is_refused() -> None:
    wrong = [[Fraction(1) if i == j else Fraction(-9, 10) for j in range(3)] for i in range(3)]
    with pytest.raises(ValueError, match="not positive semidefinite"):
        codes.dimension_of(wrong)


@control
def test_cap_in_one_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        codes.cap_constant(1)
