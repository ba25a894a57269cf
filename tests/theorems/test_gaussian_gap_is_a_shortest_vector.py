"""A Gaussian head with precision matrix Λ selects any shift, and its gap is the squared length of a shortest non-zero vector of the lattice with Gram matrix Λ.

T14, `docs/theorems/gaussian_gap_is_a_shortest_vector.md`. The truth is rational arithmetic that
tries every point of a box; masses are balls, and every comparison is with all numbers in one.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, fmpq, fmpq_mat
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.encodings.absolute import Absolute
from constructions.encodings.gaussian import Gaussian, Matrix
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from tests.pages.options import agrees, truth_of
from tests.support import heads
from tests.support.helpers import refused, traced
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import CONVOLUTIONS, PADDING_MODES, Case, integer_cases, sharpnesses
from theory import gaussian_gap_is_a_shortest_vector as theory
from theory.tools.shortest_vectors import box, form, mass_bound, pivots, shortest, vectors
from theory.tools.theta import ball, precision

SLUG = "gaussian_gap_is_a_shortest_vector"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
every_mode = pytest.mark.parametrize("mode", PADDING_MODES)

HEXAGONAL: Matrix = ((1.0, 0.5), (0.5, 1.0))
SLANTED: Matrix = ((5.0, 3.0), (3.0, 2.0))  # a unimodular image of the identity: gap 1
UNEVEN: Matrix = ((0.3, 0.1), (0.1, 0.7))  # no two float64s of it are multiples of one
LEVEL: Matrix = ((2.0, 0.0), (0.0, 3.0))
SHEARED: dict[int, Matrix] = {
    1: ((0.7,),),
    2: SLANTED,
    3: ((2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0)),
}


@st.composite
def precisions(draw: st.DrawFn, ranks: Sequence[int] = (1, 2, 3), diagonal: bool = False) -> Matrix:
    """B^T B + D over a power of two, B of small integers and D > 0 diagonal: exact float64s.

    Condition: the box has at most 2000 points, all of which the oracle tries.
    """
    d = draw(st.sampled_from(ranks))
    entries = st.integers(-3, 3)
    rows = [[0 if diagonal else draw(entries) for _ in range(d)] for _ in range(d)]
    extra = [draw(st.sampled_from([1, 2, 4, 16, 64])) for _ in range(d)]
    scale = draw(st.sampled_from([1, 8, 1024]))
    matrix = tuple(
        tuple(
            (16 * sum(row[i] * row[j] for row in rows) + (extra[i] if i == j else 0)) / scale
            for j in range(d)
        )
        for i in range(d)
    )
    least = min(Fraction(row[i]) for i, row in enumerate(matrix))
    assume(math.prod(2 * side + 1 for side in box(matrix, least)) <= 2000)
    return matrix


@st.composite
def any_precisions(draw: st.DrawFn) -> Matrix:
    """Matrices of float64s of all 53 bits, well conditioned: diagonally dominant, scaled."""
    d = draw(st.integers(1, 3))
    unit = st.floats(-0.45, 0.45)
    off = {(i, j): draw(unit) for i in range(d) for j in range(i)}
    scale = draw(st.sampled_from([1.0, 1e-9, 3e40]))
    return tuple(
        tuple(
            scale * (draw(st.floats(1.0, 9.0)) if i == j else off[max(i, j), min(i, j)])
            for j in range(d)
        )
        for i in range(d)
    )


def here(rank: int) -> tuple[Tensor, Lattice]:
    """A shift of zero, and a grid of one point."""
    return torch.zeros(1, rank, dtype=torch.float64), Lattice.box((1,) * rank)


def largest_error(matrix: Matrix, reach: Sequence[int]) -> Fraction:
    """c of equation (23), and the two roundings in which the code computes it."""
    d = len(matrix)
    size = 3 * sum(
        abs(Fraction(entry)) * reach[i] * reach[j]
        for i, row in enumerate(matrix)
        for j, entry in enumerate(row)
    )
    roundings = d * (d + 1) // 2 + 2 * d + 5
    u = Fraction(1, 2**53)
    return roundings * u * size * (1 + Fraction(1, 2**30)) * (1 + u) ** 2


def is_definite(matrix: Sequence[Sequence[Fraction]]) -> bool:
    """Whether all leading minors are positive (Sylvester)."""
    sizes = range(1, len(matrix) + 1)
    return all(
        fmpq_mat(
            n, n, [fmpq(e.numerator, e.denominator) for row in matrix[:n] for e in row[:n]]
        ).det()
        > 0
        for n in sizes
    )


def transformed(matrix: Matrix, unimodular: Sequence[Sequence[int]]) -> Matrix:
    """U^T Λ U, the same lattice in another basis."""
    columns = list(zip(*unimodular, strict=True))
    size = len(matrix)
    return tuple(
        tuple(
            float(
                sum(
                    (
                        Fraction(matrix[i][j]) * a[i] * b[j]
                        for i, j in product(range(size), repeat=2)
                    ),
                    start=Fraction(0),
                )
            )
            for b in columns
        )
        for a in columns
    )


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# The gap ------------------------------------------------------------------------------------------


@exact
@given(matrix=precisions())
@example(matrix=HEXAGONAL)
@example(matrix=((3.0, -1.0, -1.0), (-1.0, 3.0, -1.0), (-1.0, -1.0, 3.0)))
def test_stated_gap_is_the_shortest_vector(matrix: Matrix) -> None:
    # Equations (4) and (24): these entries are exact, and so is their gap.
    shift, grid = here(len(matrix))
    assert Gaussian(matrix).score_error(shift, grid) == 0
    assert Fraction(Gaussian(matrix).gap(shift, grid)) == shortest(matrix)


@exact
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_shortest_vector_that_no_pair_shows_is_found(signs: tuple[int, ...]) -> None:
    # Three vectors of the plane that sum up to little, some of them reversed.
    matrix = tuple(
        tuple(a * b * (1 + 2.0**-6 if i == j else -0.5) for j, b in enumerate(signs))
        for i, a in enumerate(signs)
    )
    assert Gaussian(matrix).gap(*here(3)) == 3 * 2.0**-6


@exact
@given(matrix=precisions(ranks=(2, 3)), data=st.data())
def test_gap_is_that_of_the_lattice_in_every_basis(matrix: Matrix, data: st.DataObject) -> None:
    size = len(matrix)
    lower, upper = (
        [
            [int(i == j) or (data.draw(st.integers(-5, 5)) if (i < j) is up else 0) for j in rows]
            for i in rows
        ]
        for up in (False, True)
        for rows in [range(size)]
    )
    order = data.draw(st.sampled_from(list(permutations(range(size)))))
    sheared = transformed(transformed(matrix, lower), upper)
    sheared = tuple(tuple(sheared[i][j] for j in order) for i in order)
    shift, grid = here(size)
    assert Gaussian(sheared).gap(shift, grid) == Gaussian(matrix).gap(shift, grid)


@exact
def test_identity_is_the_default_in_every_dimension() -> None:
    for rank in (1, 2, 3, 4):
        identity = tuple(tuple(float(i == j) for j in range(rank)) for i in range(rank))
        shift, grid = here(rank)
        for named, plain in zip(
            Gaussian(identity).encode(shift + 2, shift + 1, grid),
            Gaussian().encode(shift + 2, shift + 1, grid),
            strict=True,
        ):
            assert torch.equal(named, plain)
        assert Gaussian().gap(shift, grid) == Gaussian(identity).gap(shift, grid) == 1.0


@bounded
@given(matrix=any_precisions(), far=st.integers(1, 300))
def test_gap_of_any_floats_is_below_the_true_one_by_what_scores_may_err(
    matrix: Matrix, far: int
) -> None:
    # Equation (25) wants exactly this.
    grid = Lattice.box((far,) * len(matrix))
    shift = torch.ones(1, len(matrix), dtype=torch.float64)
    encoding = Gaussian(matrix)
    gap, error = Fraction(encoding.gap(shift, grid)), Fraction(encoding.score_error(shift, grid))
    exact_gap = shortest(matrix)
    assert gap <= exact_gap - 2 * error < Fraction(math.nextafter(float(gap), math.inf))
    # Equation (23): a target of shift 1 leaves the grid by one, and the shift itself is one more.
    assert error <= largest_error(matrix, [far + 1] * len(matrix))


@bounded
@given(matrix=precisions())
@example(matrix=HEXAGONAL)
@example(matrix=SHEARED[3])
def test_gap_is_between_its_bounds(matrix: Matrix) -> None:
    # Equations (7) to (9) and (13).
    d, gap = len(matrix), shortest(matrix)
    found = pivots(matrix)
    determinant = math.prod(found)
    assert min(found) <= gap <= min(Fraction(row[i]) for i, row in enumerate(matrix))
    for order in permutations(range(d)):
        assert min(pivots([[matrix[i][j] for j in order] for i in order])) <= gap
    # λ_min ≤ min d_j: take the pivot off the diagonal, and Λ is no longer definite.
    assert is_definite([[Fraction(entry) for entry in row] for row in matrix])
    assert not is_definite(
        [
            [Fraction(e) - min(found) * (i == j) for j, e in enumerate(row)]
            for i, row in enumerate(matrix)
        ]
    )
    hermite = {1: Fraction(1), 2: Fraction(4, 3), 3: Fraction(2)}[d]
    assert gap**d <= hermite * determinant
    record(ratio=float(gap**d / (hermite * determinant)), dtype="real")
    with precision(200):
        volume = {1: arb(2), 2: arb.pi(), 3: 4 * arb.pi() / 3}[d]
        # Λ = (1) attains the bound on one axis.
        assert not ball(gap**d) * volume**2 > arb(4) ** d * ball(determinant)


@bounded
@given(matrix=precisions(), factor=st.fractions(1, 9, max_denominator=4))
@example(matrix=HEXAGONAL, factor=Fraction(7, 4))
def test_few_vectors_are_near_the_gap(matrix: Matrix, factor: Fraction) -> None:
    # Equations (12) and (15), factor being R².
    d, gap = len(matrix), shortest(matrix)
    assume(math.prod(2 * side + 1 for side in box(matrix, factor * gap)) <= 500)
    short = vectors(matrix, factor * gap)
    near = sum(form(matrix, e) < 2 * gap for e in short)
    assert near <= 2 * (2**d - 1)
    with precision(200):
        packed = (2 * ball(factor).sqrt() + 1) ** d
        assert not 1 + len(short) > packed
        record(ratio=float(((1 + len(short)) / packed).upper()), dtype="real")


@bounded
@given(matrix=precisions(), alpha=st.floats(1.0, 40.0), data=st.data())
@example(matrix=HEXAGONAL, alpha=3.0, data=None)
def test_off_target_mass_is_below_its_bound_on_every_grid(
    matrix: Matrix, alpha: float, data: st.DataObject | None
) -> None:
    # Equations (16) and (18).
    d, gap = len(matrix), shortest(matrix)
    shape = [5] * d if data is None else [data.draw(st.integers(1, 5)) for _ in range(d)]
    target = [2] * d if data is None else [data.draw(st.integers(0, n - 1)) for n in shape]
    steps = [
        tuple(k - t for k, t in zip(key, target, strict=True))
        for key in product(*map(range, shape))
    ]
    with precision(400):
        mass = sum(
            ((-ball(alpha) * ball(form(matrix, e) / gap)).exp() for e in steps if any(e)), arb(0)
        )
        bound = mass_bound(alpha, d, bits=400)
        record(ratio=float((mass / bound).upper()), dtype="real")
        assert mass < bound
        pairs = {e for e in vectors(matrix, gap) if e in steps and tuple(-x for x in e) in steps}
        assert not mass < len(pairs) * (-ball(alpha)).exp()


@exact
@given(matrix=precisions(diagonal=True), data=st.data())
def test_nearest_key_is_the_clamp_for_a_diagonal_precision(
    matrix: Matrix, data: st.DataObject
) -> None:
    # Equation (21).
    shape = [data.draw(st.integers(1, 4)) for _ in matrix]
    target = [data.draw(st.integers(-6, n + 5)) for n in shape]
    clamp = [min(max(t, 0), n - 1) for t, n in zip(target, shape, strict=True)]

    def below(key: Sequence[int], other: Sequence[int]) -> Fraction:
        return form(matrix, [k - o for k, o in zip(key, other, strict=True)])

    for key in product(*map(range, shape)):
        assert below(key, target) - below(clamp, target) >= below(key, clamp)


@exact
@given(matrix=precisions(ranks=(2, 3)), data=st.data())
@example(matrix=HEXAGONAL, data=None)
def test_edge_of_two_pixels_is_not_replicated_off_the_diagonal(
    matrix: Matrix, data: st.DataObject | None
) -> None:
    # Equation (22): whatever is not zero off the diagonal, two pixels are enough.
    d = len(matrix)
    crossed = [(i, j) for i, j in permutations(range(d), 2) if matrix[i][j] != 0]
    assume(crossed)
    i, j = crossed[0] if data is None else data.draw(st.sampled_from(crossed))
    entry, sideways = Fraction(matrix[i][j]), Fraction(matrix[j][j])
    target = [0] * d
    target[i] = -math.ceil(sideways / (2 * abs(entry)))
    target[j] = int(entry > 0)  # which is the coordinate of the clamp
    clamp, other = [0] * d, [0] * d
    clamp[j], other[j] = target[j], 1 - target[j]
    of_clamp, of_other = (
        form(matrix, [k - t for k, t in zip(key, target, strict=True)]) for key in (clamp, other)
    )
    assert of_other <= of_clamp


# Scores as computed -------------------------------------------------------------------------------


def computed_scores(
    encoding: Gaussian, deltas: Sequence[Sequence[int]], shift: Sequence[float], grid: Lattice
) -> list[float]:
    features, names = encoding.encode(
        torch.tensor(deltas, dtype=torch.float64), torch.tensor([shift], dtype=torch.float64), grid
    )
    d = len(shift)
    assert features.shape == (len(deltas), d * (d + 3) // 2)
    assert names.shape == (1, d * (d + 3) // 2)
    scores: list[float] = (names @ features.T)[0].tolist()
    return scores


def true_score(matrix: Matrix, delta: Sequence[int], shift: Sequence[float]) -> Fraction:
    exactly = [Fraction(s) for s in shift]
    difference: Any = [d - s for d, s in zip(delta, exactly, strict=True)]
    named: Any = exactly
    return form(matrix, named) - form(matrix, difference)


@bounded
@given(matrix=any_precisions(), data=st.data())
def test_computed_scores_err_by_no_more_than_stated(matrix: Matrix, data: st.DataObject) -> None:
    # Equation (23): of displacements and shifts, and of positions and targets.
    d = len(matrix)
    shape = tuple(data.draw(st.integers(1, 1000)) for _ in range(d))
    origin = tuple(data.draw(st.integers(-5, 0)) for _ in range(d))
    grid = Lattice(shape, (1,) * d, origin)
    whole = data.draw(st.booleans())
    shift = [
        float(data.draw(st.integers(-20, 20)) if whole else data.draw(st.floats(-20, 20)))
        for _ in range(d)
    ]
    encoding = Gaussian(matrix)
    error = Fraction(encoding.score_error(torch.tensor([shift], dtype=torch.float64), grid))
    key = [data.draw(st.sampled_from([o, o + n - 1])) for o, n in zip(origin, shape, strict=True)]
    other = [data.draw(st.integers(o, o + n - 1)) for o, n in zip(origin, shape, strict=True)]
    query = [k - math.trunc(s) for k, s in zip(other, shift, strict=True)]
    deltas = [[k - q for k, q in zip(k_, query, strict=True)] for k_ in (key, other)]
    for points, named in ((deltas, shift), ([key, other], [float(t) for t in other])):
        for point, score in zip(
            points, computed_scores(encoding, points, named, grid), strict=True
        ):
            off = abs(Fraction(score) - true_score(matrix, point, named))
            assert off <= error
            record(ratio=float(off / error) if error else 0.0, dtype=torch.float64)


@exact
@given(matrix=precisions(), data=st.data())
def test_scores_of_small_rationals_are_exact(matrix: Matrix, data: st.DataObject) -> None:
    # Equation (24), and (2).
    d, far = len(matrix), st.integers(-200, 200)
    shift = [data.draw(st.integers(-9, 9)) for _ in range(d)]
    deltas = [[data.draw(far) for _ in range(d)] for _ in range(3)]
    grid = Lattice.box((200,) * d)
    encoding = Gaussian(matrix)
    assert encoding.score_error(torch.tensor([shift]), grid) == 0
    named = [float(s) for s in shift]
    for delta, score in zip(deltas, computed_scores(encoding, deltas, named, grid), strict=True):
        assert score == true_score(matrix, delta, named)


@exact
def test_scores_stop_being_exact_at_the_stated_size() -> None:
    # Equation (24) with Λ = (1): 6 ρ² ≤ 2^53, and ρ = n - 1 on n keys, for a shift of 0.
    reach = math.isqrt(2**53 // 6)
    at, beyond = (Lattice.box((n,)) for n in (reach + 1, reach + 2))
    one, shift = Gaussian(((1.0,),)), torch.zeros(1, 1)
    assert one.score_error(shift, at) == 0 < one.score_error(shift, beyond)


@exact
def test_stated_error_is_that_of_the_theorem() -> None:
    # Equation (23): ρ is the extent of the grid, how far a target may leave it, and the shift.
    shift = torch.tensor([[2.0, -2.0]])
    reach = 29 + 2 + 2
    bound, u = largest_error(UNEVEN, [reach, reach]), Fraction(1, 2**53)
    stated = Fraction(Gaussian(UNEVEN).score_error(shift, Lattice.box((30, 30))))
    assert bound * ((1 - u) / (1 + u)) ** 2 <= stated <= bound


@exact
@given(matrix=precisions(diagonal=True), data=st.data())
def test_a_diagonal_precision_is_the_sum_of_its_axes(matrix: Matrix, data: st.DataObject) -> None:
    d = len(matrix)
    delta = [data.draw(st.integers(-9, 9)) for _ in range(d)]
    shift = [float(data.draw(st.integers(-9, 9))) for _ in range(d)]
    parts = Gaussian(matrix).axes(d)
    assert parts is not None
    total = 0.0
    for axis, part in enumerate(parts):
        assert isinstance(part, Gaussian)
        line = Lattice.box((9,))
        assert Gaussian(SLANTED).axes(2) is None
        total += computed_scores(part, [[delta[axis]]], [shift[axis]], line)[0]
    assert [total] == computed_scores(Gaussian(matrix), [delta], shift, Lattice.box((9,) * d))


# Layers -------------------------------------------------------------------------------------------

KINDS: dict[str, dict[int, Matrix]] = {
    "diagonal": {1: ((0.3,),), 2: LEVEL, 3: ((2.0, 0, 0), (0, 0.7, 0), (0, 0, 3.0))},
    "sheared": SHEARED,
    "uneven": {
        1: ((1 / 3,),),
        2: UNEVEN,
        3: ((0.3, 0.1, 0.0), (0.1, 0.7, -0.2), (0.0, -0.2, 0.9)),
    },
}
every_kind = pytest.mark.parametrize("kind", [*KINDS, "identity"])


def encoding_of(kind: str, rank: int) -> Gaussian:
    return Gaussian() if kind == "identity" else Gaussian(KINDS[kind][rank])


@exact
@given(
    data=st.data(),
    dtype=st.sampled_from(FORMATS),
    kind=st.sampled_from([*KINDS, "identity"]),
    boundary=st.sampled_from(["auto", "padded"]),
    evaluation=st.sampled_from(["auto", "dense"]),
    absolute=st.booleans(),
)
def test_saturated_layers_are_the_convolution_of_integers(
    data: st.DataObject,
    dtype: torch.dtype,
    kind: str,
    boundary: str,
    evaluation: str,
    absolute: bool,
    device: str,
) -> None:
    case = data.draw(integer_cases(dtype))
    truth = truth_of(case)
    case = case.to(device)
    encoding: Any = encoding_of(kind, len(case.conv.kernel_size))
    layer = attention_from_conv(
        case.conv,
        encoding=Absolute(encoding) if absolute else encoding,
        boundary=boundary,
        evaluation=evaluation,
    )
    assert agrees(layer, case, truth)
    record(device=device, dtype=dtype)


@bounded
@given(
    data=st.data(),
    dtype=st.sampled_from(FORMATS),
    kind=st.sampled_from([*KINDS, "identity"]),
    alpha=sharpnesses(),
)
def test_layers_of_every_sharpness_are_certified(
    data: st.DataObject, dtype: torch.dtype, kind: str, alpha: float
) -> None:
    case = data.draw(integer_cases(dtype))
    layer = attention_from_conv(
        case.conv, encoding=encoding_of(kind, len(case.conv.kernel_size)), sharpness=alpha
    )
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    assert certificate.holds
    record(ratio=certificate.ratio, dtype=dtype)


@exact
@every_mode
@every_kind
def test_borders_are_natural_where_the_theorem_says(mode: str, kind: str) -> None:
    # Equations (20) and (21).
    for rank in (1, 2, 3):
        encoding = encoding_of(kind, rank)
        natural = mode == "zeros" or (
            mode == "replicate" and (rank == 1 or kind in ("identity", "diagonal"))
        )
        assert (encoding.natural(mode) is not None) is natural
        case = heads.generic_case(rank, padding_mode=mode)
        layer = attention_from_conv(case.conv, encoding=encoding, evaluation="dense")
        assert layer.boundary == ("natural" if natural else "padded")
        assert agrees(layer, case, truth_of(case))


@exact
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_layers_run_where_there_are_no_values(alpha: float | None) -> None:
    case = heads.generic_case(2)
    layer = attention_from_conv(case.conv, encoding=Gaussian(UNEVEN), sharpness=alpha).to("meta")
    assert layer(case.x.to("meta")).shape == case.conv(case.x).shape


@exact
def test_layers_are_traced_in_one_graph() -> None:
    case = heads.generic_case(2)
    layer = attention_from_conv(case.conv, encoding=Gaussian(UNEVEN), sharpness=3.0)
    assert torch.equal(traced(layer)(case.x), layer(case.x))


# What is refused ----------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize(
    ("kind", "given_", "accepted", "matrix"),
    [
        (TypeError, "[[1.0]]", "a tuple of rows", [[1.0]]),
        (TypeError, "([1.0],)", "a tuple of rows", ([1.0],)),
        (TypeError, "(('1',),)", "real numbers", (("1",),)),
        (TypeError, "((True,),)", "real numbers", ((True,),)),
        (ValueError, "()", "d rows of d numbers", ()),
        (ValueError, "((1.0, 0.0),)", "d rows of d numbers", ((1.0, 0.0),)),
        (ValueError, "nan", "float64s", ((math.nan,),)),
        (ValueError, "inf", "float64s", ((math.inf,),)),
        (ValueError, "9007199254740993", "float64s", ((2**53 + 1,),)),
        (ValueError, "0.5000000000000001", "symmetric", ((1.0, 0.5), (0.5000000000000001, 1.0))),
        (ValueError, "-1.0", "positive definite", ((-1.0,),)),
        (ValueError, "2.0", "positive definite", ((1.0, 2.0), (2.0, 4.0))),
        (ValueError, "1.5", "positive definite", ((1.0, 1.5), (1.5, 1.0))),
        (ValueError, "5e-324", "positive definite", ((5e-324,),)),
    ],
)
def test_precision_that_is_none_is_refused(
    kind: type[Exception], given_: str, accepted: str, matrix: Any
) -> None:
    with refused(kind, "precision", given_, accepted):
        Gaussian(matrix)


@exact
def test_precision_of_another_dimension_is_refused() -> None:
    with refused(ValueError, "precision", "2 x 2", "1 x 1"):
        attention_from_conv(nn.Conv1d(1, 1, 3), encoding=Gaussian(LEVEL))
    with refused(ValueError, "precision", "2 x 2", "3 x 3"):
        Gaussian(LEVEL).encode(torch.zeros(1, 3), torch.zeros(1, 3), Lattice.box((1, 1, 1)))


@exact
def test_nearly_singular_precision_is_refused() -> None:
    # Three vectors of the plane that sum up to almost nothing: no two show it.
    flat = tuple(tuple(1 + 2.0**-30 if i == j else -0.5 for j in range(3)) for i in range(3))
    with refused(ValueError, "precision", "may be the shortest", "100000"):
        Gaussian(flat).gap(*here(3))
    # A gap this small with entries from 1 to 3 is less than what scores may err on a huge grid.
    golden, thin = (1 + math.sqrt(5)) / 2, 2.0**-20
    matrix = ((1 + thin, golden), (golden, golden**2 + thin))
    shift, grid = here(2)
    fibonacci = [(1, -1), (2, -1), (3, -2), (5, -3), (8, -5), (13, -8), (21, -13), (34, -21)]
    assert 0 < Gaussian(matrix).gap(shift, grid) <= min(form(matrix, e) for e in fibonacci)
    with refused(ValueError, "precision", "may err by", "a smaller grid"):
        Gaussian(matrix).gap(shift, Lattice.box((2**20, 2**20)))


# Targets that an output padding takes far away ---------------------------------------------------


@exact
@pytest.mark.parametrize(
    ("matrix", "boundary"), [(UNEVEN, "padded"), (LEVEL, "padded"), (None, "natural")]
)
def test_precision_has_a_bounded_reach(matrix: Matrix | None, boundary: str) -> None:
    # Equations (23) and (24) are about the distances that shifts and spacing allow.
    conv = nn.ConvTranspose2d(1, 1, 1, dilation=60, output_padding=59)
    encoding = Gaussian(matrix)
    assert encoding.bounded_reach is (matrix is not None)
    assert Absolute(encoding).bounded_reach is encoding.bounded_reach
    assert attention_from_conv(conv, encoding=encoding).boundary == boundary


@control
def test_error_stated_for_the_pixels_is_none_of_targets_that_a_dilation_takes_away() -> None:
    # Outputs 0 to 61 of 3 x 3 pixels are targets, 61 from pixel 0; shift and spacing say 2.
    conv = nn.ConvTranspose2d(1, 1, 1, dilation=60, output_padding=59)
    pixels, shift = Lattice.box((3, 3)), torch.zeros(1, 2, dtype=torch.float64)
    assert conv(torch.zeros(1, 1, 3, 3)).shape[2:] == (62, 62)
    near = Fraction(Gaussian(UNEVEN).score_error(shift, pixels))
    layer = attention_from_conv(conv, encoding=Gaussian(UNEVEN))
    padded = Lattice.box((62, 62))
    far = Fraction(Gaussian(UNEVEN).score_error(shift, padded))
    assert near <= largest_error(UNEVEN, [2, 2]) < far <= largest_error(UNEVEN, [61, 61])
    errors = []
    for delta in product(range(-61, 3), repeat=2):
        score = computed_scores(Gaussian(UNEVEN), [delta], [0.0, 0.0], pixels)[0]
        errors.append(abs(Fraction(score) - true_score(UNEVEN, delta, [0.0, 0.0])))
    assert near < max(errors) <= far
    assert layer.encoding.relative_score_error(shift, padded) > 0


# What the checks reject ---------------------------------------------------------------------------


class GapOfTheDiagonal(Gaussian):
    """The least diagonal entry, an upper bound."""

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        assert self.precision is not None
        return float(min(row[i] for i, row in enumerate(self.precision)))


class CrossTermsOnce(Gaussian):
    """Λ_ij δ_i δ_j, i < j, counted once."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        features, names = super().encode(displacements, shifts, grid)
        names[:, 1] /= 2
        return features, names


class ReplicatingByItself(Gaussian):
    """Said to continue the edge by itself, whatever the precision."""

    @property
    def natural_borders(self) -> dict[str, Any]:
        return {"replicate": self}


class ShiftOfTheIdentity(Gaussian):
    """2 Δ for 2 Λ Δ."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        features, names = super().encode(displacements, shifts, grid)
        names[:, -shifts.shape[1] :] = 2 * shifts
        return features, names


def one_hot(layer: MultiHeadSelfAttention, case: Case) -> bool:
    """Whether the stored weights of a padded layer are those of T1."""
    targets = heads.Targets.of(case)
    weights = numbers(layer.attention_weights(case.x.shape[2:]))
    return bool(np.array_equal(weights, targets.one_hot()))


@control
@every_format
@pytest.mark.parametrize("wrong", [GapOfTheDiagonal, CrossTermsOnce, ShiftOfTheIdentity])
def test_wrong_encoding_is_not_one_hot(dtype: torch.dtype, wrong: type[Gaussian]) -> None:
    case = heads.generic_case(2, dtype, kernel=(3, 3))
    options: Any = {"boundary": "padded", "evaluation": "dense"}
    assert one_hot(attention_from_conv(case.conv, encoding=Gaussian(SLANTED), **options), case)
    assert not one_hot(attention_from_conv(case.conv, encoding=wrong(SLANTED), **options), case)


@control
@pytest.mark.parametrize("alpha", [None, 3.0, 1e6])
def test_edge_is_not_replicated_by_a_precision_off_the_diagonal(alpha: float | None) -> None:
    # Equation (22), in a larger box: pixels (0, 2) and (0, 1) tie at the target (-1, 2).
    conv = CONVOLUTIONS[1](1, 1, 3, padding=1, padding_mode="replicate", dtype=torch.float64)
    for parameter in conv.parameters():
        parameter.data.copy_(torch.arange(parameter.numel()).view_as(parameter))
    layer = attention_from_conv(
        conv, encoding=ReplicatingByItself(HEXAGONAL), sharpness=alpha, evaluation="dense"
    )
    assert layer.boundary == "natural"
    up = [[-1.0, 0.0]].index(layer.positional_shift[1].tolist()) + 1
    row = layer.attention_weights((5, 5))[up, 2]
    assert row[2] == row[1] > 0
    assert row[2] <= 0.5
    image = torch.arange(25, dtype=torch.float64).square().reshape(1, 1, 5, 5)
    case = Case(conv, image)
    assert not agrees(layer, case, truth_of(case))
    level = attention_from_conv(conv, encoding=Gaussian(LEVEL), evaluation="dense")
    assert level.boundary == "natural"
    assert agrees(level, case, truth_of(case))


def parabola_one_off(matrix: Matrix) -> Fraction:
    """The least value with one axis an integer beyond the vertex, and 0 or ±1 on the others."""
    values = [Fraction(row[i]) for i, row in enumerate(matrix)]
    for point in product((-1, 0, 1), repeat=2):
        if any(point):
            slope = sum(Fraction(matrix[0][i]) * e for i, e in enumerate(point, start=1))
            vertex = -slope // Fraction(matrix[0][0]) + 1
            values.append(form(matrix, (int(vertex), *point)))
    return min(values)


@control
def test_parabola_one_off_misses_the_shortest_vector() -> None:
    # The vertex is an integer, 1, for the other entries (1, 1): one off it is at neither side.
    matrix = tuple(
        tuple((1.0 if i == 0 else 1.09375) if i == j else -0.5 for j in range(3)) for i in range(3)
    )
    assert parabola_one_off(matrix) == 1
    assert Gaussian(matrix).gap(*here(3)) == shortest(matrix) == form(matrix, (1, 1, 1)) == 0.1875


@control
def test_eigenvalue_pivots_and_diagonal_can_all_differ_from_the_gap() -> None:
    matrix = ((5.0, 3.0), (3.0, 2.5))
    eigenvalue = float(np.linalg.eigvalsh(np.array(matrix))[0])
    gap = shortest(matrix)
    assert eigenvalue < min(pivots(matrix)) < gap < Fraction(5, 2)
    assert Gaussian(matrix).gap(*here(2)) == gap == Fraction(3, 2)


@control
def test_box_of_the_diagonal_misses_the_shortest_vector() -> None:
    # |e_i| ≤ √(m/Λ_ii) instead of √(m (Λ^-1)_ii).
    matrix = transformed(((1.0, 0.0), (0.0, 1.0)), ((5, 7), (2, 3)))
    least = min(Fraction(row[i]) for i, row in enumerate(matrix))
    wrong = [math.isqrt(int(least / Fraction(row[i]))) for i, row in enumerate(matrix)]
    points = product(*(range(-side, side + 1) for side in wrong))
    assert min(form(matrix, e) for e in points if any(e)) > shortest(matrix) == 1
    assert Gaussian(matrix).gap(*here(2)) == 1


@control
def test_mass_bound_of_the_quadratic_encoding_is_none_for_a_hexagonal_one() -> None:
    # 2 d = 4 nearest neighbours are not 6, and three classes modulo 2 are not two.
    alpha = 20.0
    with precision(200):
        x = (-arb(alpha)).exp()
        mass = sum(
            (
                (-ball(alpha) * ball(form(HEXAGONAL, e))).exp()
                for e in product(range(-2, 3), repeat=2)
                if any(e)
            ),
            arb(0),
        )
        assert mass > 4 * x + 4 * x**2
        assert 5 * x < mass < mass_bound(alpha, 2)
        assert mass > mass_bound(Fraction(alpha) + Fraction(1, 2**20), 2)


@control
def test_half_the_sharpness_is_not_certified() -> None:
    case = heads.generic_case(2, torch.float64, kernel=(3, 3))
    layer = attention_from_conv(case.conv, encoding=Gaussian(UNEVEN), sharpness=9.0)
    assert certify(layer, case.conv, case.x).holds
    heads.half_the_sharpness(layer)
    assert not certify(layer, case.conv, case.x).holds
