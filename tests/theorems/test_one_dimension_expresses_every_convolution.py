"""With a positional encoding of dimension one, N + 1 heads of finite logits express every convolution of N taps exactly, on every padded grid and on every torus; on a window alone N heads do.

T12, `docs/theorems/one_dimension_expresses_every_convolution.md`. Exactly means in rationals: the
softmax of rational exponentials, and equality with the oracle's integers. The floating-point layer
is held to its certificate.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, arb_mat, fmpq
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from constructions import assert_equivalent, attention_from_conv, certify
from constructions.certificate.certificate import Certificate
from constructions.encodings import Encoding
from constructions.encodings.scalar import Scalar
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import formal, heads
from tests.support.helpers import refused
from tests.support.ledger import record
from tests.support.oracle import convolve, convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, real_cases
from theory import one_dimension_expresses_every_convolution as theory
from theory.attention_is_soft_padding_then_convolution import compounded, growth
from theory.saturated_softmax_is_one_hot import EXP_ROUNDOFFS
from theory.saturated_softmax_is_one_hot import FORMATS as EXACT_FORMATS
from theory.tools.theta import ball, precision

SLUG = "one_dimension_expresses_every_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)

Point = tuple[int, ...]
Rationals = NDArray[Any]


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Attention in rationals ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A convolution of integers, on the grid of its keys.

    Attributes:
        keys: where the keys stand.
        values: what stands there, (T, D_in).
        queries: where the outputs stand.
        offsets: of the taps.
        kernel: their matrices, (N, D_in, D_out).
        truth: the oracle's output, (Q, D_out).
        torus: the grid's shape, if displacements are taken modulo it.
    """

    keys: tuple[Point, ...]
    values: Rationals
    queries: tuple[Point, ...]
    offsets: tuple[Point, ...]
    kernel: Rationals
    truth: Rationals
    torus: Point | None

    @property
    def others(self) -> int:
        """The number of keys outside of a window."""
        return len(self.keys) - len(self.offsets)

    def displacement(self, key: Point, query: Point) -> Point:
        delta = tuple(k - q for k, q in zip(key, query, strict=True))
        return delta if self.torus is None else self.modulo(delta)

    def modulo(self, delta: Point) -> Point:
        assert self.torus is not None
        return tuple(d % n for d, n in zip(delta, self.torus, strict=True))

    def taps(self) -> list[Point]:
        """The displacements of the taps, as the heads see them."""
        return [d if self.torus is None else self.modulo(d) for d in self.offsets]

    @classmethod
    def of(
        cls,
        image: Rationals,
        weight: Rationals,
        stride: Point,
        dilation: Point,
        padding: Point,
        *,
        torus: bool,
        natural: bool = False,
    ) -> "Task":
        """Zero padding made of keys, or none that is (natural); or a torus."""
        pixels, kernel = image.shape[1:], weight.shape[2:]
        border = [0 if torus or natural else p for p in padding]
        truth = convolve(
            image,
            weight,
            None,
            stride=stride,
            dilation=dilation,
            padding=padding,
            padding_mode="circular" if torus else "zeros",
        )
        padded = np.pad(image, [(0, 0), *((b, b) for b in border)])
        keys = [
            tuple(i - b for i, b in zip(k, border, strict=True))
            for k in np.ndindex(*padded.shape[1:])
        ]
        taps = list(np.ndindex(*kernel))
        return cls(
            keys=tuple(keys),
            values=padded.reshape(len(image), -1).T,
            queries=tuple(
                tuple(i * s for i, s in zip(q, stride, strict=True))
                for q in np.ndindex(*truth.shape[1:])
            ),
            offsets=tuple(
                tuple(i * d - p for i, d, p in zip(t, dilation, padding, strict=True)) for t in taps
            ),
            kernel=np.array([weight[(..., *t)].T for t in taps], dtype=object),
            truth=truth.reshape(len(truth), -1).T,
            torus=tuple(pixels) if torus else None,
        )


@dataclass(frozen=True)
class Logits:
    """Scores c_h r_δ with rational e^(c_h) and integer r.

    Attributes:
        bases: e^(c_h), a positive rational for each head.
        inside: r of each tap.
        outside: r of every other displacement.
        sink: for each head the exponential of one more key, of value zero, if there is one.
    """

    bases: tuple[Fraction, ...]
    inside: tuple[int, ...]
    outside: int
    sink: tuple[Fraction, ...] | None = None

    def coefficients(self, columns: int) -> Rationals:
        """b of equation (4), from the columns of the taps and, if asked for, of all else."""
        exponents = [*self.inside, self.outside][:columns]
        found = theory.coefficients(theory.powers(self.bases, exponents), len(self.inside))
        return np.array([[rational(b) for b in row] for row in found], dtype=object)

    def sums(self, keys: int) -> list[fmpq]:
        """Z of equation (2)."""
        others = keys - len(self.inside)
        own = self.sink or (Fraction(0),) * len(self.bases)
        return [
            sum((y**r for r in self.inside), rational(s)) + others * y**self.outside
            for y, s in zip(map(rational, self.bases), own, strict=True)
        ]


def rational(number: Fraction) -> fmpq:
    return fmpq(number.numerator, number.denominator)


def attend(task: Task, logits: Logits, matrices: Sequence[Rationals]) -> Rationals:
    """The layer by its definition: softmax of every row, values, and the sum over heads."""
    number = dict(zip(task.taps(), logits.inside, strict=True))
    exponents = [
        [number.get(task.displacement(k, q), logits.outside) for k in task.keys]
        for q in task.queries
    ]
    output = np.zeros_like(task.truth)
    own = logits.sink or (Fraction(0),) * len(logits.bases)
    for base, sink, matrix in zip(logits.bases, own, matrices, strict=True):
        power = {r: rational(base) ** r for r in {*logits.inside, logits.outside}}
        rows = np.array([[power[r] for r in row] for row in exponents], dtype=object)
        weights = rows / (rows.sum(axis=1, keepdims=True) + rational(sink))
        output = output + (weights @ task.values) @ matrix
    return output


def mixtures(task: Task, logits: Logits, *, keys: int | None = None) -> list[Rationals]:
    """V of equation (4), or of (9) where there is one head for each tap."""
    coefficients = logits.coefficients(len(logits.bases))
    sums = logits.sums(len(task.keys) if keys is None else keys)
    return [z * np.tensordot(b, task.kernel, 1) for z, b in zip(sums, coefficients, strict=True)]


def computes(task: Task, logits: Logits, matrices: Sequence[Rationals]) -> bool:
    return bool((attend(task, logits, matrices) == task.truth).all())


# Draws --------------------------------------------------------------------------------------------

SIZES: list[Point] = [
    *((size,) for size in (1, 2, 3, 4, 5)),
    *((1, 1), (2, 1), (2, 2), (2, 3), (3, 1)),
    *((1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 3, 2)),
]
kernels = st.sampled_from(SIZES)


@st.composite
def tasks(draw: st.DrawFn, torus: bool) -> Task:
    """Convolutions of at most 6 taps, on small grids.

    On a torus the taps meet distinct pixels: along an axis of n pixels, multiples of the dilation r
    have n / gcd(n, r) residues.
    """
    kernel = draw(kernels)
    axes = []
    for size in kernel:
        dilation = draw(st.integers(1, 2))
        reach = dilation * (size - 1)
        least = next(n for n in range(1, 12) if n // math.gcd(n, dilation) >= size) if torus else 1
        n = draw(st.integers(least, max(least, 6 // len(kernel))))
        while torus and n // math.gcd(n, dilation) < size:
            n += 1
        short = max(0, -(-(reach + 1 - n) // 2))
        padding = draw(st.integers(short, max(short, min(n, 2))))
        axes.append((n, draw(st.integers(1, 2)), dilation, padding))
    pixels, stride, dilation_, padding_ = (tuple(part) for part in zip(*axes, strict=True))
    d_in, d_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return Task.of(
        integers(draw, (d_in, *pixels)),
        integers(draw, (d_out, d_in, *kernel)),
        stride,
        dilation_,
        padding_,
        torus=torus,
    )


def integers(draw: st.DrawFn, shape: Sequence[int]) -> Rationals:
    """Integers from -7 to 8, four bits of drawn bytes each."""
    size = math.prod(shape)
    data = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
    return ((data.astype(int) % 16 + 8) % 16 - 7).reshape(shape).astype(object)


@st.composite
def logits_for(draw: st.DrawFn, taps: int, count: int) -> Logits:
    """Distinct bases for so many heads, and distinct exponents for the taps and all else."""
    sixths = st.lists(st.integers(1, 30), min_size=count, max_size=count, unique=True)
    whole = st.lists(st.integers(-4, 6), min_size=taps + 1, max_size=taps + 1, unique=True)
    bases, exponents = draw(sixths), draw(whole)
    return Logits(tuple(Fraction(base, 6) for base in bases), tuple(exponents[:-1]), exponents[-1])


# It is exact --------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("torus", [False, True], ids=["padded grid", "torus"])
@given(data=st.data())
def test_one_head_more_than_taps_computes_the_convolution_in_rationals(
    data: st.DataObject, torus: bool
) -> None:
    task = data.draw(tasks(torus), label="task")
    logits = data.draw(logits_for(len(task.offsets), len(task.offsets) + 1), label="logits")
    assert computes(task, logits, mixtures(task, logits))
    record(dtype="rational")


@exact
@given(data=st.data())
def test_as_many_heads_as_taps_compute_it_on_a_window_alone(data: st.DataObject) -> None:
    kernel = data.draw(kernels)
    image, weight = data.draw(images((1, *kernel))), data.draw(images((2, 1, *kernel)))
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    task = Task.of(image, weight, ones, ones, zeros, torus=False)
    assert task.others == 0
    logits = data.draw(logits_for(len(task.offsets), len(task.offsets)))
    assert computes(task, logits, mixtures(task, logits))
    record(dtype="rational")


@st.composite
def images(draw: st.DrawFn, shape: Sequence[int]) -> Rationals:
    return integers(draw, shape)


@exact
@given(data=st.data(), torus=st.booleans())
def test_as_many_heads_as_taps_miss_a_grid_by_one_combination_of_the_kernel(
    data: st.DataObject, torus: bool
) -> None:
    # Equation (10): what is left is (sum of the other pixels) times Σ λ_δ W_δ.
    task = data.draw(tasks(torus), label="task")
    taps = len(task.offsets)
    assume(task.others > 0)
    logits = data.draw(logits_for(taps, taps), label="logits")
    window = theory.powers(logits.bases, logits.inside)
    column = theory.powers(logits.bases, [logits.outside])
    combination = np.array([(window.inv() * column)[j, 0] for j in range(taps)], dtype=object)
    assert (combination != 0).all()
    number = set(task.taps())
    outside = np.array(
        [
            sum(
                x
                for k, x in zip(task.keys, task.values, strict=True)
                if task.displacement(k, q) not in number
            )
            for q in task.queries
        ],
        dtype=object,
    )
    left = outside @ np.tensordot(combination, task.kernel, 1)
    assert (attend(task, logits, mixtures(task, logits)) - task.truth == left).all()

    # A kernel of that hyperplane needs no more: the last matrix, chosen so.
    kernel = task.kernel.copy()
    kernel[-1] = -np.tensordot(combination[:-1], kernel[:-1], 1) / combination[-1]
    moved = replace(task, kernel=kernel)
    same = attend(moved, logits, mixtures(moved, logits))
    one_hot = np.array(
        [
            [[task.displacement(k, q) == d for k in task.keys] for q in task.queries]
            for d in task.taps()
        ],
        dtype=object,
    )
    assert (same == sum(a @ task.values @ w for a, w in zip(one_hot, kernel, strict=True))).all()
    record(dtype="rational")


@exact
@given(data=st.data())
def test_ordered_exponentials_have_a_positive_determinant_and_an_alternating_inverse(
    data: st.DataObject,
) -> None:
    # Equations (7) and (8).
    count = data.draw(st.integers(1, 6))
    logits = data.draw(logits_for(count - 1, count))
    exponents = sorted([*logits.inside, logits.outside])
    assert theory.alternates(theory.powers(sorted(logits.bases), exponents))
    record(dtype="rational")


# The construction ---------------------------------------------------------------------------------


def numbers_of(taps: int) -> tuple[list[Fraction], list[Fraction]]:
    """r of the taps and of all else, c of the heads, as the code has them."""
    offsets = torch.arange(taps, dtype=torch.float64).unsqueeze(-1)
    shifts = Scalar().heads(offsets)
    elsewhere = shifts[-1:] + 1
    features, queries = Scalar().encode(
        torch.cat([offsets, elsewhere]), shifts, Lattice.box((taps,))
    )
    return [Fraction(v) for v in features[:, 0].tolist()], [
        Fraction(v) for v in queries[:, 0].tolist()
    ]


@exact
@pytest.mark.parametrize("taps", [1, 2, 9, 27, 127, 128, 170, 204, 255])
def test_features_and_names_are_powers_of_two_and_every_score_is_finite(taps: int) -> None:
    # Equations (14) and (18).
    features, names = numbers_of(taps)
    bits = min(8, 1021 // taps)
    ratio = Fraction(2**bits)
    assert features == [*(ratio**j for j in range(taps)), 4 * ratio**taps]
    assert names == [*(-4 / ratio ** (h + 1) for h in range(taps)), 0]
    assert bits >= 4
    assert all(abs(c * r) < 2**1023 for c in (names[0], names[-2]) for r in features)


@exact
@given(data=st.data())
def test_encoding_numbers_taps_in_the_order_of_their_offsets_and_nothing_else(
    data: st.DataObject,
) -> None:
    rank = data.draw(st.integers(1, 3))
    points = st.tuples(*[st.integers(-4, 4)] * rank)
    offsets = data.draw(st.lists(points, min_size=1, max_size=9, unique=True), label="offsets")
    others = data.draw(st.lists(points, max_size=9), label="others")
    taps, beyond = len(offsets), [p for p in others if p not in offsets]
    given_ = torch.tensor(offsets, dtype=torch.float64)
    shifts = Scalar().heads(given_)
    assert tuple(shifts[-1].tolist()) > max(offsets)
    everywhere = torch.cat([given_, torch.tensor(beyond, dtype=torch.float64).reshape(-1, rank)])
    features, names = Scalar().encode(everywhere, shifts, Lattice.box((1,) * rank))
    place = {p: j for j, p in enumerate(sorted(offsets))}
    reference, of_heads = numbers_of(taps)
    wanted = [reference[place.get(p, taps)] for p in [*offsets, *beyond]]
    assert [Fraction(v) for v in features[:, 0].tolist()] == wanted
    assert [Fraction(v) for v in names[:, 0].tolist()] == [
        *(of_heads[place[p]] for p in offsets),
        0,
    ]


@exact
@given(order=st.permutations(range(7)), keys=st.integers(7, 1000))
def test_heads_and_taps_keep_their_numbers_in_any_order(order: list[int], keys: int) -> None:
    offsets = torch.tensor([[i, j] for i in (-1, 2) for j in (-3, 0, 5)] + [[2, 6]]).double()
    grid, rows = Lattice.box((keys, 1)), [*order, 7]
    coefficients = Scalar().coefficients(offsets)
    gains = Scalar().gains(Scalar().heads(offsets), grid)
    moved = offsets[order]
    assert torch.equal(Scalar().coefficients(moved), coefficients[rows][:, order])
    assert torch.equal(Scalar().gains(Scalar().heads(moved), grid), gains[rows])


DOUBLE = EXACT_FORMATS["float64"]
ROUNDOFF = Fraction(1, 2**53)


def exponential_error() -> arb:
    """τ of T7 for float64, with the error (19) of a score, counted without the code."""
    lowest = 1 - ball(DOUBLE.smallest_normal).log()
    own = (EXP_ROUNDOFFS + 2 * lowest) * ball(ROUNDOFF * (1 + Fraction(1, 2**12)))
    return compounded([own, ball(ROUNDOFF).expm1()])


@bounded
@given(taps=st.integers(1, 12), keys=st.integers(0, 10**6))
@example(taps=60, keys=10**5)
def test_amplification_is_linear_in_the_number_of_taps(taps: int, keys: int) -> None:
    # Equation (17), for the exact inverse, and the gains of the code.
    total, bits = taps + keys, min(8, 1021 // taps)
    offsets = torch.arange(taps, dtype=torch.float64).unsqueeze(-1)
    gains = Scalar().gains(Scalar().heads(offsets), Lattice.box((total,)))
    with precision(200):
        # Each exponential; T - N and its product; the sum of N + 1 terms.
        allowed = compounded([exponential_error(), growth(taps + 3, ball(ROUNDOFF))])
        weights = theory.exponentials(taps, bits)
        sums = (weights * arb_mat([[1]] * taps + [[keys]])).entries()
        inverse, bound = weights.inv(), theory.amplification_bound(taps, total, bits)
        for tap in {0, taps // 2, taps - 1}:
            amplification = sum((abs(inverse[tap, h]) * sums[h] for h in range(taps + 1)), arb(0))
            assert amplification <= bound
            record(ratio=float((amplification / bound).upper()), dtype="real")
        for head, gain in enumerate(gains.tolist()):  # relative to the head's own tap
            assert abs(arb(gain) * weights[head, head] / sums[head] - 1) <= allowed


@bounded
@given(taps=st.integers(1, 12))
@example(taps=49)
def test_residual_of_the_coefficients_is_what_float64_sees_of_it(taps: int) -> None:
    # Equation (22): within τ + γ of the sum of moduli, and what the exponentials may flush.
    shifts = Scalar().heads(torch.arange(taps, dtype=torch.float64).unsqueeze(-1))
    coefficients = Scalar().coefficients(shifts[:-1])
    features, names = Scalar().encode(shifts, shifts, Lattice.box((taps,)))
    scores = names * features.T
    computed = coefficients.T @ (scores - scores.diagonal().unsqueeze(-1)).exp()
    assert Fraction(Scalar().score_error(shifts, Lattice.box((taps,)))) == ROUNDOFF
    with precision(200):
        part = exponential_error() + growth(taps + 3, ball(ROUNDOFF))
        flushed = 2 * ball(DOUBLE.smallest_normal)
        weights = theory.exponentials(taps, min(8, 1021 // taps))
        own = arb_mat(
            [[1 / weights[i, i] if i == j else 0 for j in range(taps + 1)] for i in range(taps + 1)]
        )
        left = arb_mat(coefficients.T.tolist()) * own * weights
        size = arb_mat(coefficients.T.abs().tolist()) * own * weights
        taps_ = {0, taps // 2, taps - 1}
        for tap in taps_:  # and it is no larger than what float64 can see at all
            most = max(
                (size[tap, j] for j in range(taps + 1)), key=lambda entry: float(entry.mid())
            )
            assert all(abs(left[tap, j] - (tap == j)) <= part * most for j in range(taps + 1))
        for tap, j in product(taps_, range(taps + 1)):
            limit = part * size[tap, j] + (taps + 1) * flushed * 2
            error = abs(left[tap, j] - arb(computed[tap, j].item()))
            assert error <= limit
            record(ratio=float((error / limit).upper()), dtype=torch.float64)


# The layer ----------------------------------------------------------------------------------------


def scalar_layer(case: Case, boundary: str = "auto") -> MultiHeadSelfAttention:
    return attention_from_conv(case.conv, encoding="scalar", boundary=boundary)


def certified(case: Case, layer: MultiHeadSelfAttention) -> Certificate:
    return certify(layer, case.conv, case.x, output_size=case.output_size)


def true_ratio(case: Case, layer: MultiHeadSelfAttention, certificate: Certificate) -> float:
    """The layer's largest error from the exact convolution, over the certificate's bound."""
    truth = convolve_module(case.conv, case.x, case.output_size)
    error = exact_error(numbers(case.run(layer)), truth)
    limit = certificate.bound.numpy()
    within = (error == 0) | np.isinf(limit)
    quotient = np.divide(error, limit, out=np.full_like(error, math.inf), where=limit > 0)
    return float(np.where(within, 0.0, quotient).max(initial=0.0))


def collides(case: Case) -> bool:
    """Whether two taps of a circular convolution are one pixel of the image."""
    conv, pixels = case.conv, case.x.shape[-len(case.conv.kernel_size) :]
    return conv.padding_mode == "circular" and any(
        n // math.gcd(n, r) < k
        for n, r, k in zip(pixels, conv.dilation, conv.kernel_size, strict=True)
    )


@bounded
@pytest.mark.parametrize(
    "formats", [FORMATS[:2], FORMATS[2:]], ids=["half precision", "float32 and float64"]
)
@given(data=st.data())
def test_layer_of_every_convolution_errs_within_its_certificate(
    data: st.DataObject, device: str, formats: Sequence[torch.dtype]
) -> None:
    dtype = data.draw(st.sampled_from(formats), label="dtype")
    case = data.draw(real_cases(dtype), label="case").to(device)
    boundary = data.draw(st.sampled_from(["auto", "padded"]), label="boundary")
    layer = scalar_layer(case, boundary)
    assert layer.num_heads == math.prod(case.conv.kernel_size) + 1
    if data.draw(st.booleans(), label="built in float32"):
        single = case.conv.float()
        assume(all(p.isfinite().all() for p in single.parameters()))
        layer = attention_from_conv(single, encoding="scalar", boundary=boundary).to(dtype)
        case = Case(single.to(dtype), case.x, case.output_size)
    if layer.boundary == "natural" and collides(case):
        with pytest.raises(ValueError, match=r"boundary='padded'"):
            case.run(layer)
        return
    certificate = certified(case, layer)
    assert (certificate.leak == 0).all()
    assert not certificate.bound.isnan().any()
    ratio = true_ratio(case, layer, certificate)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1.0
    assert certificate.holds


# What the checks reject ---------------------------------------------------------------------------


def small_task(*, natural: bool = False, torus: bool = False) -> Task:
    """Three taps on five pixels, nothing symmetric."""
    image = np.array([[2, -3, 5, 1, 4]], dtype=object)
    weight = np.array([[[3, -2, 7]]], dtype=object)
    return Task.of(image, weight, (1,), (1,), (1,), natural=natural, torus=torus)


LOGITS = Logits((Fraction(1, 2), Fraction(1), Fraction(2), Fraction(3)), (0, 1, 2), 3)


@control
@pytest.mark.parametrize("torus", [False, True], ids=["padded grid", "torus"])
def test_one_head_less_fails_because_of_the_other_keys(torus: bool) -> None:
    task = small_task(torus=torus)
    assert computes(task, LOGITS, mixtures(task, LOGITS))
    fewer = replace(LOGITS, bases=LOGITS.bases[:3])
    assert not computes(task, fewer, mixtures(task, fewer))
    # Nor is it enough to leave one of the four out.
    assert not computes(task, fewer, mixtures(task, LOGITS)[:3])


@control
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(replace(LOGITS, bases=(*LOGITS.bases[:3], LOGITS.bases[0])), id="repeated c"),
        pytest.param(replace(LOGITS, inside=(0, 1, 1)), id="two taps of one r"),
        pytest.param(replace(LOGITS, outside=2), id="a tap that looks like all else"),
    ],
)
def test_numbers_that_repeat_have_no_coefficients(wrong: Logits) -> None:
    with pytest.raises(ZeroDivisionError):
        wrong.coefficients(4)


@control
@pytest.mark.parametrize(
    "sink",
    [None, (Fraction(1),) * 4, (Fraction(1, 9), Fraction(2), Fraction(1, 3), Fraction(5))],
    ids=["no sink", "a sink", "a sink for each head"],
)
def test_natural_zeros_fail_at_the_border_and_only_there(
    sink: tuple[Fraction, ...] | None,
) -> None:
    task, logits = small_task(natural=True), replace(LOGITS, sink=sink)
    right = (attend(task, logits, mixtures(task, logits)) == task.truth).all(axis=1)
    assert right.tolist() == [False, True, True, True, False]


@control
@pytest.mark.parametrize("keys", [5, 6, 8, 20])
def test_matrices_for_another_number_of_keys_fail(keys: int) -> None:
    task = small_task()
    assert len(task.keys) == 7
    assert not computes(task, LOGITS, mixtures(task, LOGITS, keys=keys))


@control
def test_taps_that_are_one_pixel_of_a_torus_fail() -> None:
    image, weight = np.array([[2, -3]], dtype=object), np.array([[[3, -2, 7]]], dtype=object)
    task = Task.of(image, weight, (1,), (1,), (1,), torus=True)
    assert not computes(task, LOGITS, mixtures(task, LOGITS))


@dataclass(frozen=True)
class SwappedTorus(Scalar):
    """The axes of the torus exchanged: rows are taken modulo the number of columns."""

    torus: bool = True

    @property
    def natural_borders(self) -> dict[str, Encoding | None]:
        return {"circular": self}

    def encode(
        self, displacements: torch.Tensor, shifts: torch.Tensor, grid: Lattice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().encode(displacements, shifts, Lattice.box(grid.shape[::-1]))


@control
def test_torus_with_its_axes_swapped_is_rejected_on_5_by_7_pixels() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.arange(1.0, parameter.numel() + 1).view_as(parameter))
    case = Case(conv, (torch.arange(35.0, dtype=torch.float64) ** 2 % 11).view(1, 1, 5, 7))
    for encoding, holds in ((Scalar(), True), (SwappedTorus(), False)):
        layer = attention_from_conv(conv, encoding=encoding)
        assert layer.boundary == "natural"
        assert (true_ratio(case, layer, certified(case, scalar_layer(case))) <= 1) is holds


@control
def test_certificate_says_nothing_where_a_stored_mixture_overflows() -> None:
    # Every entry of the kernel is a float16, and so are all outputs; differences of two are not.
    conv = nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float16)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[-60000.0, 60000.0, -60000.0]]]))
        nn.init.zeros_(conv.get_parameter("bias"))
    x = torch.zeros(1, 1, 5, dtype=torch.float16)
    x[..., 2] = 2.0**-20
    case = Case(conv, x)
    layer = scalar_layer(case)
    assert case.run(conv).isfinite().all()
    assert not case.run(layer).isfinite().any()
    certificate = certified(case, layer)
    assert certificate.bound.isinf().all()
    # What is left of it without the overflow is a number, and wrong.
    finite = replace(certificate, rounding=torch.ones_like(certificate.rounding))
    assert not finite.holds


@control
def test_equally_spaced_numbers_amplify_exponentially() -> None:
    taps, keys = 25, 900
    logits = Logits(tuple(1 + Fraction(h, taps) for h in range(taps + 1)), tuple(range(taps)), taps)
    coefficients, sums = logits.coefficients(taps + 1), logits.sums(keys)
    amplification = max(
        sum((abs(b) * z for b, z in zip(column, sums, strict=True)), fmpq(0))
        for column in coefficients.T
    )
    assert amplification > 10**20
    assert theory.amplification_bound(taps, keys, 8) < 53


WRONG_LAYERS = [
    heads.reversed_kernel,
    heads.query_minus_key,
    heads.swapped_axes,
    heads.repeated_shift,
    heads.missing_head,
    heads.shared_matrices,
    heads.half_the_sharpness,
]


@dataclass(frozen=True)
class OtherGains(Scalar):
    """Gains for one key more than there is."""

    def gains(self, shifts: torch.Tensor, keys: Lattice) -> torch.Tensor:
        return super().gains(shifts, Lattice.box((keys.size + 1,)))


@control
@every_format
@pytest.mark.parametrize("wrong", WRONG_LAYERS, ids=lambda wrong: wrong.__name__)
def test_wrong_layer_breaks_its_certificate(dtype: torch.dtype, wrong: heads.Wrong) -> None:
    case = heads.generic_case(2, dtype)
    layer = scalar_layer(case)
    assert certified(case, layer).holds
    wrong(layer)
    assert not certified(case, layer).holds
    with pytest.raises(AssertionError, match="the layer is not the convolution"):
        assert_equivalent(layer, case.conv, case.x)


@control
def test_layer_without_its_last_head_breaks_its_certificate() -> None:
    # That head takes away what the others see of the keys outside: e^-16 of each, which is little.
    case = heads.generic_case(2, torch.float64)
    layer = scalar_layer(case)
    assert certified(case, layer).holds
    with torch.no_grad():
        for factor in (layer.value, layer.output):
            if factor is not None:
                factor[..., -1] = 0
    assert not certified(case, layer).holds


@control
def test_layer_with_the_gains_of_another_grid_breaks_its_certificate() -> None:
    case = heads.generic_case(2, torch.float64)
    certificate = certified(case, scalar_layer(case))
    assert certificate.holds
    layer = attention_from_conv(case.conv, encoding=OtherGains())
    error = exact_error(numbers(case.run(layer)), convolve_module(case.conv, case.x))
    assert (error > certificate.bound.numpy()).any()
    assert not certified(case, layer).holds  # nor does its own count them in


@control
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_certificate_of_heads_that_select_is_no_bound_for_heads_that_mix(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 4, 5, padding=2, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    x = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    case = Case(conv, x)
    certificate = certified(case, scalar_layer(case))
    selecting = certified(case, attention_from_conv(conv, encoding="quadratic"))
    assert certificate.holds
    assert not replace(certificate, rounding=selecting.rounding).holds


REFUSALS: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "a sharpness": (
        lambda: attention_from_conv(nn.Conv1d(1, 1, 3), encoding="scalar", sharpness=4.0),
        "sharpness",
        "4.0",
        "None",
    ),
    "another normaliser": (
        lambda: attention_from_conv(nn.Conv1d(1, 1, 3), encoding="scalar", normaliser=Softish()),
        "normaliser",
        "Softish",
        "softmax",
    ),
    "natural zeros": (
        lambda: attention_from_conv(
            nn.Conv1d(1, 1, 3, padding=1), encoding="scalar", boundary="natural"
        ),
        "boundary",
        "natural",
        "padded",
    ),
    "more taps than float64 has powers for": (
        lambda: attention_from_conv(nn.Conv2d(1, 1, 16), encoding="scalar"),
        "offsets",
        "256 taps",
        "255",
    ),
    "more taps than float32 has powers for": (
        lambda: Scalar().encode(
            torch.zeros(1, 1), torch.arange(17.0).unsqueeze(-1), Lattice.box((1,))
        ),
        "offsets",
        "16 taps",
        "float64",
    ),
    "taps that are one pixel": (
        lambda: attention_from_conv(
            nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), encoding="scalar"
        )(torch.ones(1, 1, 2)),
        "keys",
        "3 taps meet 2 pixels",
        "boundary='padded'",
    ),
}


@dataclass(frozen=True)
class Softish:
    """A normaliser that is not softmax."""

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(dim=-1)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        return 1.0


@control
@pytest.mark.parametrize(("call", "argument", "told", "accepted"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_theorem_does_not_cover_is_refused(
    call: Callable[[], object], argument: str, told: str, accepted: str
) -> None:
    with refused(ValueError, argument, told, accepted):
        call()


@control
def test_factored_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation 'factored' does not apply"):
        attention_from_conv(nn.Conv1d(1, 1, 3), encoding="scalar", evaluation="factored")


@control
def test_torus_is_a_bool() -> None:
    with refused(TypeError, "torus", "int", "a bool"):
        Scalar(torus=1)  # type: ignore[arg-type]


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
