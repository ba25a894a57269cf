"""T14. Absolute scores select the same shift.

Algebra with symbols, and floating point as what it is: numbers of p bits, exactly.
"""

from fractions import Fraction
from itertools import pairwise, permutations, product

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import BITS, ball, precision

__all__ = ["FORMATS", "THEOREM", "prove", "rounded"]

THEOREM = Theorem(
    slug="absolute_scores_select_the_same_shift",
    number="T14",
    source="",
    title="Absolute scores select the same shift",
    gist="stock dot products with d + 1 features, and how far each format carries them",
    claim=(
        "Where the score of a relative encoding is a function of δ − Δ up to a constant of the "
        "row, keys encoded by where they stand and queries that name their target have the same "
        "attention weights. "
        "One dot product of a feature of the key and one of the query is enough, as stock "
        "attention has it: D_k = d + 1 for squared distances, which is least, and D_k = d + 2 "
        "without the constant. With a sharpness a 2^b, a odd, all scores are exact as long as "
        "a (‖k‖² + 2 Σ |t_i k_i|) ≤ 2^p, features and names fit their format, and nothing leaves "
        "the range of exponents; and then weights are exactly one-hot in stock attention "
        "from the same sharpness on. Two features are enough to select one of T keys, with a gap "
        "of 1 − cos(2π/T) instead of 1."
    ),
    hypotheses=(
        "the relative score is f(δ − Δ) + c(Δ)",
        "keys, queries and shifts are integer points; t = q + Δ is the target",
        "the normaliser ignores a constant added to a row, or the constant is removed",
        "for stock attention: sums of products in an accumulator of p bits, in any order, and the "
        "exponential of 0 is 1",
    ),
    notation={
        "r, v": "features of keys and names of targets: the score is <v(t), r(k)>",
        "f, c": "the part of a score that depends on k − t, and the constant of the row",
        "t = q + Δ": "the target",
        "α = a 2^b": "the sharpness, a its odd part",
        "D_k": "the number of features",
        "p, p_w": "bits of the accumulator, and of the format of features and names",
        "Z": "the largest ‖k‖² + 2 Σ |t_i k_i|, and + ‖t‖² for centred scores",
        "ρ": "the rest that a fused exponential leaves of a peak",
        "T": "the number of keys",
    },
    proof_idea=(
        "k − t = δ − Δ. What is added is constant along a row, which softmax ignores. Integers of "
        "p bits are added without rounding, and an odd part is all that a sharpness costs."
    ),
    references=(
        "arXiv:1911.03584, section 3 and Lemma 2",
        "arXiv:2205.14135 (FlashAttention)",
    ),
    objects=(
        "constructions.encodings.Absolute",
        "constructions.encodings.Quadratic",
        "constructions.attention_from_conv",
        "constructions.normalisers.Softmax",
    ),
)

ALPHA = sp.Symbol("alpha", positive=True)
DIMENSIONS = (1, 2, 3)

FORMATS = {
    "float16": (11, 25, 32),
    "bfloat16": (8, 134, 128),
    "float32": (24, 150, 128),
    "float64": (53, 1075, 1024),
}
"""Bits, the threshold over ln 2 (T8), and the least power of two that is larger."""


def rounded(value: Fraction, bits: int) -> Fraction:
    """The nearest number of `bits` significant bits, ties to even; no exponent is out of range."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + bits):
        exponent += 1
    while abs(value) < Fraction(2) ** (exponent + bits - 1):
        exponent -= 1
    unit = Fraction(2) ** exponent
    return round(value / unit) * unit  # Python rounds a fraction half to even


def prove() -> tuple[Step, ...]:
    """Prove T14: equations (2) to (23) of its page."""
    proof = Proof()
    _prove_principle(proof)
    _prove_quadratic(proof)
    _prove_least(proof)
    _prove_exactness(proof)
    _prove_rounding(proof)
    _prove_fused(proof)
    _prove_circle(proof)
    _prove_evaluations(proof)
    return proof.steps


def _vector(name: str, size: int) -> sp.Matrix:
    return sp.Matrix(sp.symbols(f"{name}:{size}", real=True))


def _prove_principle(proof: Proof) -> None:
    """Displacements and shifts are replaced by keys and targets: (2) to (5)."""
    k, q, shift = sp.symbols("k q D", real=True)
    proof.check(
        "k - t = δ - Δ for t = q + Δ and δ = k - q",
        identical(k - (q + shift), (k - q) - shift),
        equation=2,
    )
    f, c, total = sp.symbols("f c S", positive=True)
    score, of_row = sp.symbols("s o", real=True)
    proof.check(
        "a constant of the row is a common factor, which cancels",
        identical(sp.exp(score + of_row), sp.exp(score) * sp.exp(of_row))
        and equal(c * f / (c * total), f / total),
        equation=3,
    )
    proof.check("one more product removes it", identical((f + c) + (-c) * 1, f), equation=4)
    a, b, common = sp.symbols("a b z", real=True)
    proof.check(
        "two keys whose weights have one quotient have one difference of scores: for positive "
        "weights, e^a / e^b = e^z at z = a - b alone, since e^z grows",
        identical(sp.exp(a) / sp.exp(b), sp.exp(a - b))
        and sp.diff(sp.exp(common), common).is_positive is True,
        equation=5,
    )
    t = sp.Symbol("t", real=True)
    proof.check(
        "the shift 0 at the query t has the target t, and a key k the displacement k - t",
        identical((q + shift).subs({q: t, shift: 0}), t) and identical((k - q).subs(q, t), k - t),
        equation=5,
    )


def _prove_quadratic(proof: Proof) -> None:
    """Squared distances of positions, as linear maps of d + 2 token features: (6) to (8)."""
    for d in DIMENSIONS:
        k, t, q, shift = (_vector(name, d) for name in "ktqs")
        features, names = [*k, k.dot(k)], [*(2 * ALPHA * t), -ALPHA]
        distance = (k - t).dot(k - t)
        score = sum(v * r for v, r in zip(names, features, strict=True))
        proof.check(
            f"<(2αt, -α), (k, |k|²)> = -α |k - t|² + α |t|², d = {d}",
            identical(score, -ALPHA * distance + ALPHA * t.dot(t)),
            equation=6,
        )
        proof.check(
            f"with (-α |t|², 1) appended the score is -α |k - t|², d = {d}",
            identical(score - ALPHA * t.dot(t), -ALPHA * distance),
            equation=7,
        )
        token = sp.Matrix([*q, q.dot(q), 1])
        rows = sp.zeros(d + 2, d + 2)
        for i in range(d):
            rows[i, i], rows[i, d + 1] = 2 * ALPHA, 2 * ALPHA * shift[i]
            rows[d + 1, i] = -2 * ALPHA * shift[i]
        rows[d, d + 1] = -ALPHA
        rows[d + 1, d], rows[d + 1, d + 1] = -ALPHA, -ALPHA * shift.dot(shift)
        target = q + shift
        wanted = sp.Matrix([*(2 * ALPHA * target), -ALPHA, -ALPHA * target.dot(target)])
        proof.check(
            f"the name of q + Δ is a linear map of (q, |q|², 1), d = {d}",
            identical(rows * token, wanted),
            equation=8,
        )


def _prove_least(proof: Proof) -> None:
    """Fewer features do not give these scores: (9)."""
    for d in DIMENSIONS:
        origin = [0] * d
        units = [[int(i == j) for i in range(d)] for j in range(d)]
        far = [2] + [1] * (d - 1)  # not on the sphere of the others
        constants = sp.symbols(f"c:{d + 1}", real=True)
        coefficients = sp.Matrix(
            [[-1, *(2 * x for x in t), c] for t, c in zip([origin, *units], constants, strict=True)]
        )
        square = coefficients[:, : d + 1]
        proof.check(
            f"0 and the unit vectors: d + 1 targets with independent rows, any constants, d = {d}",
            square.det() != 0 and not square.free_symbols,
            equation=9,
        )
        doubled = [2 * int(i == 0) for i in range(d)]
        functions = sp.Matrix([[sum(x * x for x in k), *k, 1] for k in (origin, *units, doubled)])
        proof.check(
            f"|k|², k and 1 are independent on 0, the unit vectors and twice the first, d = {d}",
            functions.det() != 0,
            equation=9,
        )
        points = [origin, *units, far]
        matrix = sp.Matrix(
            [
                [-sum((a - b) ** 2 for a, b in zip(k, t, strict=True)) for k in points]
                for t in points
            ]
        )
        proof.check(
            f"0, the unit vectors, (2, 1, ..., 1): their squared distances have full rank, d = {d}",
            matrix.rank() == d + 2,
            equation=9,
        )


def _prove_exactness(proof: Proof) -> None:
    """When all numbers are integers of few bits: (10) to (12)."""
    proof.check(
        "integers to 2^p have p bits, 2^p + 1 has not, p = 3, 4, 5",
        all(
            all(rounded(Fraction(j), p) == j for j in range(2**p + 1))
            and rounded(Fraction(2**p + 1), p) == 2**p
            for p in (3, 4, 5)
        ),
        equation=10,
    )
    terms = [
        (a, b, c) for a, b, c in product(range(-8, 9), repeat=3) if abs(a) + abs(b) + abs(c) <= 8
    ]
    proof.check(
        "three integers whose moduli add up to 2^3 or less are added without rounding to 3 bits",
        all(
            rounded(rounded(Fraction(a + b), 3) + c, 3) == a + b + c
            for of_some in terms
            for a, b, c in permutations(of_some)
        ),
        equation=10,
    )
    scale, number, a = sp.symbols("e n a", integer=True, positive=True)
    proof.check(
        "α n = 2^b (a n): scaling by a power of two keeps the bits",
        identical(2**scale * (a * number), (a * 2**scale) * number),
        equation=10,
    )
    k, t, r, s = sp.symbols("k t r s", nonnegative=True)
    beside = (3 * (k + s) ** 2 - k**2 - 2 * k * t).subs(t, k + s - r)
    proof.check(
        "one axis, n = k + s = t + r: 3 n² - k² - 2 k t = 3 s² + 4 k s + 2 k r >= 0",
        identical(beside, 3 * s**2 + 4 * k * s + 2 * k * r)
        and nonnegative(3 * s**2 + 4 * k * s + 2 * k * r),
        equation=11,
    )
    proof.check(
        "and n² - t² = 2 t r + r² >= 0 more for the constant",
        identical((t + r) ** 2 - t**2, 2 * t * r + r**2) and nonnegative(2 * t * r + r**2),
        equation=11,
    )
    proof.check(
        "the plane in float32: n = 1672, centred 1448; bfloat16: n = 11, in two digits 128",
        6 * 1672**2 <= 2**24 < 6 * 1673**2
        and 8 * 1448**2 <= 2**24 < 8 * 1449**2
        and 2 * 11**2 <= 2**8 < 2 * 12**2
        and 2 * 128 == 2**8
        and 2 * 128**2 == 256 * 128,
        equation=11,
    )
    with precision(BITS):
        for name, (bits, threshold, power) in FORMATS.items():
            theta = threshold * arb.const_log2()
            proof.check(
                f"{name}: the least power of two that saturates is {power}",
                theta * (1 + arb(2) ** -10) < power and power / 2 < theta,
                equation=12,
            )
            assert bits > 0


def _prove_rounding(proof: Proof) -> None:
    """Rounding is monotone, neighbours merge far from the origin: (13) to (15)."""
    for bits in (3, 4):
        grid = [Fraction(n, 8) for n in range(-400, 401)]
        values = [rounded(x, bits) for x in grid]
        proof.check(
            f"rounding to {bits} bits is monotone on 801 numbers, and odd",
            all(x <= y for x, y in pairwise(values))
            and all(rounded(-x, bits) == -y for x, y in zip(grid, values, strict=True)),
            equation=13,
        )
    for p in (3, 4, 5):
        square = 2 ** (p + 1)
        proof.check(
            f"{p} bits: {square} - 1 and {square} merge, {2**p} - 1 and {2**p} do not",
            rounded(Fraction(square - 1), p) == square
            and rounded(Fraction(2**p - 1), p) == 2**p - 1,
            equation=14,
        )
    error, size, m = sp.symbols("g Z m", positive=True)
    proof.check(
        "two scores that err by α g Z each differ by α (m - 2 g Z) at least",
        identical(
            (ALPHA * m - ALPHA * error * size) - ALPHA * error * size,
            ALPHA * (m - 2 * error * size),
        ),
        equation=15,
    )


def _prove_fused(proof: Proof) -> None:
    """A peak whose score is 0 has no rest, and a zero key is a sink: (16), (17)."""
    # round(s log2 e) subtracted in one operation, with log2 e itself rounded to the format.
    approximated = Fraction(12102203, 2**23)  # log2 e in float32
    for p, s in product((8, 11, 24), (Fraction(1), Fraction(104), Fraction(12345))):
        factor = rounded(approximated, p)
        rest = s * factor - rounded(s * factor, p)
        proof.check(
            f"the rest of a peak of score {s} in {p} bits is at most 2^-p s log2 e",
            abs(rest) <= Fraction(1, 2**p) * s * factor and rounded(0 * factor, p) == 0,
            equation=16,
        )
    score = sp.Symbol("s", real=True)
    proof.check(
        "a key of zeros scores 0 for every query, α/2 below a peak that is raised by α/2",
        identical((0 + ALPHA / 2) - 0 * score, ALPHA / 2)
        and positive(ALPHA / 2)
        and identical(0 - (-ALPHA + ALPHA / 2), ALPHA / 2),
        equation=17,
    )


def _prove_circle(proof: Proof) -> None:
    """Two features, keys on a circle: (18) to (20)."""
    phi, psi, n = sp.symbols("phi psi n", real=True)
    proof.check(
        "<(cos φ, sin φ), (cos ψ, sin ψ)> = cos(φ - ψ)",
        identical(
            sp.expand_trig(sp.cos(phi - psi)), sp.cos(phi) * sp.cos(psi) + sp.sin(phi) * sp.sin(psi)
        ),
        equation=18,
    )
    proof.check(
        "1 - cos 2y = 2 sin² y",
        identical(
            sp.expand_trig(1 - sp.cos(2 * n)).subs(sp.cos(n) ** 2, 1 - sp.sin(n) ** 2),
            2 * sp.sin(n) ** 2,
        ),
        equation=19,
    )
    with precision(BITS):
        proof.check(
            "8/T² ≤ 1 - cos(2π/T) < 2π²/T² for T = 2 to 40, with equality at T = 2",
            all(
                arb(8) / t**2 < 1 - (2 * arb.pi() / t).cos() < 2 * arb.pi() ** 2 / t**2
                for t in range(3, 41)
            )
            and 1 - sp.cos(sp.pi) == 2,
            equation=19,
        )
        proof.check(
            "sin is concave on [0, π/2]: 2 y/π ≤ sin y < y, second derivative and ends",
            sp.diff(sp.sin(n), n, 2) == -sp.sin(n)
            and sp.sin(0) == 0
            and sp.sin(sp.pi / 2) == 1
            and sp.diff(n - sp.sin(n), n) == 1 - sp.cos(n),
            equation=19,
        )
    u, g, beta = sp.symbols("u g beta", positive=True)
    proof.check(
        "β (g - 2·8 u) = α for the scale that the code uses",
        equal((beta * (g - 16 * u)).subs(beta, ALPHA / (g - 16 * u)), ALPHA),
        equation=20,
    )
    single = Fraction(1, 2**24)
    steps = (1 + single) ** 6 - 1
    proof.check("six roundings are less than 8 u", ball(steps) < ball(8 * single), equation=20)


def _digits(n: int) -> list[int]:
    """The digits of an integer to the base 256, lowest first, each of its sign."""
    sign, rest, found = (-1 if n < 0 else 1), abs(n), []
    while rest:
        found.append(sign * (rest % 256))
        rest //= 256
    return found


def _prove_evaluations(proof: Proof) -> None:
    """Rows with their peak at 0, digits, and keys that need no visit: (21) to (23)."""
    gap, below = sp.symbols("g f", positive=True)
    for off, peak in ((0, "the target"), (1, "the sink")):
        at_target, at_key = gap * off / 2, -(gap + below) + gap * off / 2
        sink = (gap * off - gap) / 2
        highest = sink if off else at_target
        proof.check(
            f"the peak is {peak}, of score 0, and the rest is at -g/2 at most",
            highest == 0
            and (off == 1 or identical(sink, -gap / 2))
            and positive(-gap / 2 - at_key if off else -gap - at_key),
            equation=21,
        )
    n0, n1, n2, m0, m1, m2 = sp.symbols("n_0:3 m_0:3", integer=True)
    base = sp.Integer(2) ** 8
    whole = (n0 + n1 * base + n2 * base**2) * (m0 + m1 * base + m2 * base**2)
    split = sum(
        (n * base ** min(1, i + j)) * (m * base ** (i + j - min(1, i + j)))
        for i, n in enumerate((n0, n1, n2))
        for j, m in enumerate((m0, m1, m2))
    )
    proof.check(
        "the products of digits add up to the product", identical(whole, split), equation=22
    )
    cases = [
        (n, m) for n in (1, 255, 256, -4095, 65535, -65536, 2**23) for m in (1, -2, 255, -4096)
    ]
    for n, m in cases:
        if abs(n * m) >= 2**24:
            continue
        terms = [
            (a * 256 ** min(1, i + j), b * 256 ** (i + j - min(1, i + j)))
            for i, a in enumerate(_digits(n))
            for j, b in enumerate(_digits(m))
        ]
        proof.check(
            f"{n} x {m}: factors of 8 bits below 2^16, moduli that add up to that of the product",
            all(rounded(Fraction(x), 8) == x and abs(x) < 2**16 for term in terms for x in term)
            and sum(a * b for a, b in terms) == n * m
            and sum(abs(a * b) for a, b in terms) == abs(n * m),
            equation=22,
        )
    proof.check(
        "a line of 2047 keys to each side: 4 n² < 2^24; with a sink of gap 1 it is 1448",
        4 * 2047**2 < 2**24 <= 4 * 2048**2 and 2 * 4 * 1448**2 + 1 < 2**24 <= 2 * 4 * 1449**2,
        equation=22,
    )
    proof.check(
        "digits at places i and j of numbers whose product is below 2^24 have i + j of 2 at most",
        all(256 ** (i + j) >= 2**24 for i in range(4) for j in range(4) if i + j > 2),
        equation=22,
    )
    p = 3
    numbers = [Fraction(k, 2**p) for k in range(2**p + 1)]
    proof.check(
        "adding zeros changes no rounded sum",
        all(rounded(x + 0, p) == x for x in numbers),
        equation=23,
    )
