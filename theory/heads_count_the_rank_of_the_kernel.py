"""T10. Heads count the rank of the kernel.

The linear algebra is the semi-nonnegative rank of Gillis and Kumar, arXiv 1410.7220. Matrices are
exact, over the rationals: a row for each tap, the tap's matrix written in one line.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product
from math import comb
from typing import NamedTuple

import sympy as sp

from theory.tools.alternatives import Rows, alternative, rank, solved, times
from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive

__all__ = [
    "THEOREM",
    "Layer",
    "approaching",
    "case",
    "finite_heads",
    "least_finite",
    "least_masked",
    "masked_heads",
    "prove",
    "signed_heads",
    "wendel",
]

THEOREM = Theorem(
    slug="heads_count_the_rank_of_the_kernel",
    number="T10",
    source="",
    title="Heads count the rank of the kernel",
    gist="a Sobel filter needs two heads, not nine; below the rank nothing helps",
    claim=(
        "Positional heads express a convolution only if there are as many as the rank of its "
        "taps, and that many, or one more, suffice. "
        "With M the matrix of the N taps that are not 0, written out as rows, and r its rank: if "
        "weights outside of the window may be 0, r heads suffice where 0 is not in the convex hull "
        "of the taps (a); where it is on the relative boundary (b), r heads come arbitrarily "
        "close, with matrices that grow without bound, are never exact, and r + 1 are; where it is "
        "in the relative interior (c), r heads stay away by a distance, and r + 1 are exact. If "
        "all logits are finite and some other key is seen, exactly r + 1 heads are needed, and "
        "suffice, for every kernel but 0. A sink changes none of this. Signed heads, each a "
        "difference of two softmaxes, are exactly r, with finite logits. Scores that depend on the "
        "content do not need fewer if the weights are continuous at the zero image and the values "
        "are X W_val."
    ),
    hypotheses=(
        "the weights of head h depend on the displacement alone, a_h(δ) >= 0, from any scores, "
        "with or without a sink; each head applies any matrix V_h: D_h >= min(D_in, D_out)",
        "for the lower bounds: at some query all keys of the window, and in the finite case one "
        "key more, show pixels that can take any value",
        "for the constructions: every query sees its whole window among the keys, which are as "
        "many for every query (padded keys, no padding, a torus)",
        "offsets are distinct, and on a torus distinct modulo the grid",
        "content: the weights are continuous at the zero image, the values are X W_val without a "
        "bias, positions or constants",
    ),
    notation={
        "S, N": "the offsets δ of the taps with W_δ != 0, and their number",
        "M, r": "the taps as rows, N x D_in D_out, and the rank of M",
        "H, a_h, A": "the number of heads, their weights at the taps, and these as rows, H x N",
        "V_h": "the matrix of head h, W_val^h W_out^h, written in one line",
        "c, y": "vectors with Mc >= 0, y >= 0, yᵀM = 0 and Mc + y > 0",
        "σ_i": "the singular values of M, in falling order",
        "o": "a key outside of the window",
        "e_h, Z_h, z_h": "exponentials of head h, their sum, and that of its sink",
        "p, n, λ": "the two softmaxes of a signed head, and the factor of the second",
    },
    proof_idea=(
        "The layer is the convolution if and only if M = AᵀV with A >= 0. The rank is a bound; "
        "with r heads the rows of A span the columns of M, so that the question is which "
        "nonnegative vectors that space has: Gordan's and Stiemke's alternatives. One positive "
        "vector more and there are enough. A key outside, which every head sees, makes the V_h "
        "dependent."
    ),
    references=(
        "arXiv:1410.7220 (Gillis, Kumar): the semi-nonnegative rank",
        "arXiv:2512.15115: lag operators of rank k need k heads, without nonnegativity",
        "arXiv:2410.05258: differential attention",
    ),
    objects=(
        "constructions.heads.count",
        "constructions.heads.HeadCount",
        "constructions.heads.RationalCertificate",
        "constructions.encodings.Mixtures",
        "constructions.attention_from_conv",
    ),
)


# The three cases ----------------------------------------------------------------------------------


def nonzero(matrix: Rows) -> list[list[Fraction]]:
    """The taps that are not 0."""
    return [list(row) for row in matrix if any(row)]


def case(matrix: Rows) -> str:
    """Equation (4): "a", "b" or "c", for taps other than 0."""
    c, y = alternative(matrix)
    if not any(y):
        return "a"
    return "b" if any(times(matrix, c)) else "c"


def least_masked(matrix: Rows) -> int:
    """The least number of heads that see the window alone."""
    return rank(matrix) + (case(matrix) != "a")


def least_finite(matrix: Rows) -> int:
    """The least number of heads of finite logits, where another key is seen."""
    return rank(matrix) + 1 if matrix else 0


class Layer(NamedTuple):
    """Heads: weights as rows, and for each the matrix that it applies."""

    weights: list[list[Fraction]]
    matrices: list[list[Fraction]]

    def kernel(self) -> list[list[Fraction]]:
        """Σ_h a_h(δ) V_h for every δ."""
        return [
            [
                sum((a * v for a, v in zip(column, entries, strict=True)), Fraction(0))
                for entries in zip(*self.matrices, strict=True)
            ]
            for column in zip(*self.weights, strict=True)
        ]


def _basis(matrix: Rows, of: Rows = ()) -> list[list[Fraction]]:
    """Columns of a matrix, as rows, that complete given vectors to a basis of both spans."""
    found = [list(v) for v in of]
    for column in zip(*matrix, strict=True):
        if rank([*found, list(column)]) > len(found):
            found.append(list(column))
    return found


def _raised(base: Sequence[Fraction], vector: Sequence[Fraction]) -> list[Fraction]:
    """base + ε v > 0 for base > 0."""
    epsilon = min((b / (2 * abs(v)) for b, v in zip(base, vector, strict=True) if v), default=1)
    return [b + epsilon * v for b, v in zip(base, vector, strict=True)]


def _solved(weights: list[list[Fraction]], matrix: Rows) -> Layer:
    """The layer of these weights that has a kernel, which must be in their span."""
    matrices = solved([list(column) for column in zip(*weights, strict=True)], matrix)
    if matrices is None:
        raise ValueError("the weights do not span the kernel")
    return Layer(weights, matrices)


def masked_heads(matrix: Rows) -> Layer:
    """Equations (5) and (10): r heads in case (a), else r + 1."""
    c, y = alternative(matrix)
    base = [sum(map(abs, row), Fraction(0)) for row in matrix] if any(y) else times(matrix, c)
    vectors = _basis(matrix, [base])
    return _solved([base, *(_raised(base, v) for v in vectors[1:])], matrix)


def finite_heads(matrix: Rows) -> Layer:
    """Equation (12): r + 1 heads, positive at every tap and, last, at a key outside."""
    base = [*(sum(map(abs, row), Fraction(0)) for row in matrix), Fraction(1)]
    vectors = [[*v, Fraction(0)] for v in _basis(matrix)]
    outside = [Fraction(0)] * len(matrix[0])
    return _solved([base, *(_raised(base, v) for v in vectors)], [*matrix, outside])


def signed_heads(matrix: Rows) -> tuple[Layer, list[list[Fraction]], list[list[Fraction]]]:
    """Equation (19): r differences p - n, with p and n, positive, the key outside last."""
    vectors = [[*v, Fraction(0)] for v in _basis(matrix)]
    plus = [[max(v, Fraction(0)) + 1 for v in vector] for vector in vectors]
    minus = [[max(-v, Fraction(0)) + 1 for v in vector] for vector in vectors]
    outside = [Fraction(0)] * len(matrix[0])
    return _solved(vectors, [*matrix, outside]), plus, minus


def approaching(matrix: Rows, t: Fraction) -> list[list[Fraction]]:
    """Equation (7): M + t e cᵀ of a kernel in case (b), of its rank and in case (a)."""
    c, _ = alternative(matrix)
    # The part of c in the span of the rows: M c stays, and the rank does.
    gram = [times(matrix, row) for row in matrix]
    weights = solved(gram, [[v] for v in times(matrix, c)])
    assert weights is not None
    c = times(list(zip(*matrix, strict=True)), [row[0] for row in weights])
    slack = times(matrix, c)
    return [
        [w + (t * v if s == 0 else 0) for w, v in zip(row, c, strict=True)]
        for row, s in zip(matrix, slack, strict=True)
    ]


def wendel(taps: int, dimension: int) -> Fraction:
    """Equation (24): the probability of case (a) for symmetric taps in general position."""
    return Fraction(sum(comb(taps - 1, k) for k in range(dimension)), 2 ** (taps - 1))


# The proof ----------------------------------------------------------------------------------------

SOBEL = [[Fraction(v)] for v in (-1, 1, -2, 2, -1, 1)]
BORDER = [list(map(Fraction, row)) for row in ((1, 0), (0, 1), (0, -1))]  # case (b)


def prove() -> tuple[Step, ...]:
    """Prove T10: equations (1) to (26) of its page."""
    proof = Proof()
    _prove_factorisation(proof)
    _prove_cases(proof)
    _prove_boundary(proof)
    _prove_interior(proof)
    _prove_one_more(proof)
    _prove_border(proof)
    _prove_content(proof)
    _prove_signed(proof)
    _prove_floors(proof)
    _prove_conditioning(proof)
    _prove_wendel(proof)
    _prove_residual(proof)
    _prove_cost(proof)
    return proof.steps


def _small_kernels() -> list[list[list[Fraction]]]:
    """Every kernel of up to 4 taps on one channel and of up to 3 on two, entries -1, 0, 1."""
    entries = [Fraction(v) for v in (-1, 0, 1)]
    found = []
    for width, taps in ((1, 4), (2, 3)):
        rows = [list(row) for row in product(entries, repeat=width) if any(row)]
        for count in range(1, taps + 1):
            found += [list(kernel) for kernel in product(rows, repeat=count)]
    return found


def _prove_factorisation(proof: Proof) -> None:
    """What a layer does to a pixel, the rank, and what a sink changes: (1) to (3)."""
    a, v, x = sp.symbols("a:6"), sp.symbols("V:2"), sp.symbols("X:3")
    output = sum(v[h] * sum(a[3 * h + k] * x[k] for k in range(3)) for h in range(2))
    proof.check(
        "2 heads, 3 keys: the part of a pixel in the output is Σ_h a_h(δ) V_h",
        all(identical(sp.diff(output, x[k]), a[k] * v[0] + a[3 + k] * v[1]) for k in range(3)),
        equation=1,
    )
    for heads in (1, 2):
        size = heads + 1
        left = sp.Matrix(size, heads, lambda i, j: sp.Symbol(f"a{i}{j}"))
        right = sp.Matrix(heads, size, lambda i, j: sp.Symbol(f"v{i}{j}"))
        proof.check(
            f"{heads} heads: every minor of {size} rows of AᵀV is 0",
            identical((left * right).det(method="berkowitz"), 0),
            equation=2,
        )
    e = sp.symbols("e:3")
    square = sp.Poly(sp.expand(sum(p * q for p, q in zip(e, x, strict=True)) ** 2), *x)
    white = sum(c for powers, c in square.terms() if max(powers) == 2)
    proof.check(
        "white pixels: the mean square of Σ_k X_k E_k is Σ_k E_k², since E X_j X_k = [j = k]",
        identical(white, sum(p**2 for p in e)),
        equation=2,
    )
    exponential, total, sink, matrix = sp.symbols("E Z z V", positive=True)
    proof.check(
        "a sink multiplies a row by Z / (Z + z) > 0, and V takes that back",
        equal(
            exponential / (total + sink) * (matrix * (total + sink) / total),
            exponential * matrix / total,
        )
        and positive(total / (total + sink)),
        equation=3,
    )


def _prove_cases(proof: Proof) -> None:
    """The alternatives, and r heads where all taps are on one side: (4), (5)."""
    kernels = _small_kernels()
    pairs = [alternative(kernel) for kernel in kernels]
    proof.check(
        f"{len(kernels)} kernels: Mc >= 0, y >= 0, yᵀM = 0, and Mc + y > 0",
        all(
            all(s + w > 0 and s >= 0 and w >= 0 for s, w in zip(times(m, c), y, strict=True))
            and not any(times(list(zip(*m, strict=True)), y))
            for m, (c, y) in zip(kernels, pairs, strict=True)
        ),
        equation=4,
    )
    m = sp.Matrix(3, 2, sp.symbols("m:6"))
    c, y = sp.Matrix(sp.symbols("c:2")), sp.Matrix(sp.symbols("y:3"))
    proof.check(
        "yᵀ(Mc) = (yᵀM)c: with yᵀM = 0 a sum of terms y (Mc), which for y > 0 or Mc > 0 forbids "
        "both from being other than 0 and nonnegative",
        identical((y.T * m) * c, y.T * (m * c)),
        equation=4,
    )
    base, size = sp.symbols("b v", positive=True)
    proof.check(
        "b - ε |v| = b / 2 > 0 at ε = b / (2 |v|), the least of which serves every tap",
        equal(base - base / (2 * size) * size, base / 2) and positive(base / 2),
        equation=5,
    )
    for name, chosen in (("a", "r"), ("b", "r + 1"), ("c", "r + 1")):
        of_case = [k for k in kernels if case(k) == name]
        layers = [masked_heads(k) for k in of_case]
        proof.check(
            f"({name}), {len(of_case)} kernels: {chosen} nonnegative heads have the kernel",
            all(
                len(layer.weights) == rank(kernel) + (name != "a")
                and all(w >= 0 for row in layer.weights for w in row)
                and layer.kernel() == kernel
                for kernel, layer in zip(of_case, layers, strict=True)
            )
            and bool(of_case),
            equation=5 if name == "a" else 10,
        )


def _prove_boundary(proof: Proof) -> None:
    """Case (b): never exact, arbitrarily close, and unbounded: (6) to (8)."""
    c, y = alternative(BORDER)
    proof.check(
        "BORDER: a nonnegative vector of the span is 0 where y > 0, where a tap is not 0",
        case(BORDER) == "b"
        and all(s == 0 or w == 0 for s, w in zip(times(BORDER, c), y, strict=True))
        and any(w > 0 and any(row) for w, row in zip(y, BORDER, strict=True)),
        equation=6,
    )
    yy, a = sp.symbols("y:3", nonnegative=True), sp.symbols("a:3", nonnegative=True)
    proof.check(
        "a >= 0 with yᵀa = 0 is 0 where y > 0: no term y a is negative",
        all(nonnegative(w * v) for w, v in zip(yy, a, strict=True)),
        equation=6,
    )
    kernels = [k for k in _small_kernels() if case(k) == "b"]
    for t in (Fraction(1), Fraction(1, 1000)):
        moved = [approaching(k, t) for k in kernels]
        proof.check(
            f"t = {t}, {len(kernels)} kernels of case (b): M + t e cᵀ is of case (a)",
            all(case(m) == "a" for m in moved),
            equation=7,
        )
    moved = [approaching(k, Fraction(1, 1000)) for k in kernels]
    proof.check(
        f"t = 1/1000, {len(kernels)} kernels: and of the rank of M",
        all(rank(m) == rank(k) for k, m in zip(kernels, moved, strict=True)),
        equation=7,
    )
    size, error, sigma, norm, least = sp.symbols("w e s Y y", positive=True)  # |W_δ|, ε, σ_r, ..
    heads, taps = sp.symbols("r N", positive=True)
    seen = error * norm * sp.sqrt(heads * taps) / (sigma - error)
    wanted = (size - error) * least * (sigma - error) / (error * norm * heads * sp.sqrt(taps))
    proof.check(
        "|W_δ| = R √r |w| / y_δ + ε with |w| = ε |y| √(rN) / (σ_r - ε), solved for R",
        equal(
            sp.expand_power_base(
                sp.powdenest(wanted * sp.sqrt(heads) * seen / least + error, force=True),
                force=True,
            ),
            size,
        ),
        equation=8,
    )
    left, right = sp.Matrix(2, 3, sp.symbols("A:6")), sp.Matrix(2, 2, sp.symbols("V:4"))
    off, weights = sp.Matrix(3, 2, sp.symbols("E:6")), sp.Matrix(sp.symbols("y:3"))
    kernel = left.T * right + off
    proof.check(
        "Σ_h (y · a_h) V_h = yᵀM - yᵀE, for M = AᵀV + E",
        identical((left * weights).T * right, weights.T * kernel - weights.T * off),
        equation=8,
    )


def _prove_interior(proof: Proof) -> None:
    """Case (c): a floor under every layer of r heads: (9)."""
    error, kappa, sigma = sp.symbols("e k s", positive=True)
    proof.check(
        "ε = κ (σ_r - ε) at ε = κ σ_r / (1 + κ), and the sides grow and fall in ε",
        equal(
            error.subs(error, kappa * sigma / (1 + kappa)),
            kappa * (sigma - kappa * sigma / (1 + kappa)),
        )
        and identical(sp.diff(kappa * (sigma - error), error), -kappa),
        equation=9,
    )
    m, off = sp.Matrix(3, 2, sp.symbols("m:6")), sp.Matrix(3, 2, sp.symbols("E:6"))
    c, y = sp.Matrix(sp.symbols("c:2")), sp.Matrix(sp.symbols("y:3"))
    proof.check(
        "yᵀ(M + E)c = yᵀE c where yᵀM = 0",
        identical(y.T * (m + off) * c - y.T * m * c, y.T * off * c),
        equation=9,
    )
    kernels = [k for k in _small_kernels() if case(k) == "c"]
    proof.check(
        f"{len(kernels)} kernels of case (c): y > 0, and c = 0 will do",
        all(min(alternative(k)[1]) > 0 and not any(times(k, alternative(k)[0])) for k in kernels),
        equation=9,
    )


def _prove_one_more(proof: Proof) -> None:
    """Finite logits: r + 1 are needed and suffice: (11), (12)."""
    other, v = sp.symbols("o:2", positive=True), sp.symbols("V:2")
    solution = sp.solve(other[0] * v[0] + other[1] * v[1], v[0])
    proof.check(
        "two heads that both see a key outside: V_0 is a multiple of V_1, by o_1 / o_0 > 0",
        solution == [-other[1] * v[1] / other[0]] and positive(other[1] / other[0]),
        equation=11,
    )
    kernels = _small_kernels()
    layers = [finite_heads(k) for k in kernels]
    proof.check(
        f"{len(kernels)} kernels: r + 1 heads, positive at every tap and at the key outside, have "
        "the kernel, and 0 outside",
        all(
            len(layer.weights) == rank(kernel) + 1 == least_finite(kernel)
            and all(w > 0 for row in layer.weights for w in row)
            and layer.kernel() == [*kernel, [Fraction(0)] * len(kernel[0])]
            for kernel, layer in zip(kernels, layers, strict=True)
        ),
        equation=12,
    )


def _prove_border(proof: Proof) -> None:
    """Where the image ends without keys: (13), (14)."""
    total, missing = sp.symbols("Z m", positive=True)
    proof.check(
        "1 / (Z - m) - 1 / Z = m / (Z (Z - m)), 0 only for m = 0",
        equal(1 / (total - missing) - 1 / total, missing / (total * (total - missing))),
        equation=13,
    )
    e, o, v = sp.symbols("e:4"), sp.symbols("o:2"), sp.symbols("V:2")
    summed = [e[0] + e[1], e[2] + e[3]]
    taps = [e[0] * v[0] + e[2] * v[1], e[1] * v[0] + e[3] * v[1]]
    outside = o[0] * v[0] + o[1] * v[1]
    proof.check(
        "2 heads, 2 taps missing: Σ_h (Σ e_h - 2 o_h) V_h = Σ W - 2 Σ_h o_h V_h",
        identical(
            sum((s - 2 * w) * m for s, w, m in zip(summed, o, v, strict=True)),
            sum(taps) - 2 * outside,
        ),
        equation=14,
    )


def _prove_content(proof: Proof) -> None:
    """Scores that depend on the content, and what they may do: (15) to (18)."""
    t, at_t, at_0 = sp.symbols("t a_t a_0", positive=True)
    proof.check(
        "(t A(tX) X V) / t - A(0) X V = (A(tX) - A(0)) X V",
        equal(t * at_t / t - at_0, at_t - at_0),
        equation=15,
    )
    x, z, rho = sp.symbols("x z rho")
    score, zero = sp.exp(rho * x), {x: 0, z: 0}
    bias, value = 18 / rho, -3
    with_sink = (x * value + bias + score * (z * value + bias)) / (2 + score) - bias * 2 / 3
    proof.check(
        "a value bias beside a sink: one head has the derivative (1, -1) at the zero image, and "
        "the value 0",
        [sp.diff(with_sink, s).subs(zero) for s in (x, z)] == [1, -1]
        and equal(with_sink.subs(zero), sp.S.Zero),
        equation=16,
    )
    here, there = sp.S.Zero, 8 / rho
    without = (x * -2 + here + score * (z * -2 + there)) / (1 + score) - there / 2
    proof.check(
        "positions in the values: one head has the derivative (1, -1) at the zero image, and the "
        "value 0",
        [sp.diff(without, s).subs(zero) for s in (x, z)] == [1, -1]
        and equal(without.subs(zero), sp.S.Zero),
        equation=17,
    )
    proof.check(
        "the kernel (1, -1) is of case (c): two heads by (9)",
        case([[Fraction(1)], [Fraction(-1)]]) == "c",
        equation=16,
    )
    p, q, s, w = sp.symbols("p q s w", positive=True)
    weights = p / (2 * (p + q)), w / (2 * (s + w))
    proof.check(
        "weights that look at directions: one head of V = (2, 2) has the kernel (1, 0), (0, 1) on "
        "positive images",
        equal(weights[0] * 2 * (p + q) + weights[1] * 2 * (s + w), p + w)
        and positive(2 * (p + q) - p)
        and rank([[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]]) == 2,
        equation=18,
    )


def _prove_signed(proof: Proof) -> None:
    """Differences of two softmaxes: (19)."""
    p, n = sp.symbols("p:3", positive=True), sp.symbols("n:3", positive=True)
    sum_p, sum_n = sum(p), sum(n)
    ratio = sum_n / sum_p
    proof.check(
        "p / Σp - λ n / Σn = (p - n) / Σp with λ = Σn / Σp > 0, and a row sums to 1 - λ",
        all(
            equal(a / sum_p - ratio * b / sum_n, (a - b) / sum_p) for a, b in zip(p, n, strict=True)
        )
        and equal(sum((a - b) / sum_p for a, b in zip(p, n, strict=True)), 1 - ratio)
        and positive(ratio),
        equation=19,
    )
    kernels = _small_kernels()
    found = [signed_heads(k) for k in kernels]
    proof.check(
        f"{len(kernels)} kernels: r differences of positive weights have the kernel, 0 outside",
        all(
            len(plus) == rank(kernel)
            and all(w > 0 for row in [*plus, *minus] for w in row)
            and [
                [a - b for a, b in zip(x, z, strict=True)] for x, z in zip(plus, minus, strict=True)
            ]
            == layer.weights
            and layer.kernel() == [*kernel, [Fraction(0)] * len(kernel[0])]
            for kernel, (layer, plus, minus) in zip(kernels, found, strict=True)
        ),
        equation=19,
    )


def _prove_floors(proof: Proof) -> None:
    """Fewer heads than are needed: (20), (21)."""
    heads = sp.Symbol("H", integer=True, positive=True)
    proof.check(
        "H heads have every matrix of rank H - 1, since (H - 1) + 1 = H",
        identical((heads - 1) + 1, heads),
        equation=20,
    )
    m, v = sp.symbols("m v", positive=True)
    a = sp.Symbol("a", nonnegative=True)
    proof.check(
        "of m > 0 a head with v < 0 leaves (m + a |v|)² >= m², and one with v > 0 nothing",
        nonnegative((m + a * v) ** 2 - m**2) and equal(m - (m / v) * v, sp.S.Zero),
        equation=21,
    )
    parts = [sum(row[0] ** 2 for row in SOBEL if row[0] * sign > 0) for sign in (1, -1)]
    proof.check(
        "Sobel with one head: 6 of 12",
        min(parts) == 6 and sum(parts) == 12,
        equation=21,
    )


def _prove_conditioning(proof: Proof) -> None:
    """The gauge, and a simplex of locally maximal volume: (22), (23)."""
    c = sp.symbols("c:3", positive=True)
    a = sp.Matrix(3, 3, sp.symbols("a:9"))
    alpha, beta = c[0] + c[1], c[2]
    first, second = (a[:, 0] * c[0] + a[:, 1] * c[1]) / alpha, a[:, 2]
    mixed = alpha * first - beta * second
    proof.check(
        "m = c_0 a_0 + c_1 a_1 - c_2 a_2 is α p - β q, α + β = Σ |c_h|, p a mean of a_0 and a_1",
        all(equal(mixed[i], a[i, 0] * c[0] + a[i, 1] * c[1] - a[i, 2] * c[2]) for i in range(3))
        and identical(alpha + beta, sum(c))
        and equal(c[0] / alpha + c[1] / alpha, sp.S.One),
        equation=22,
    )
    coefficients = a.adjugate() * sp.Matrix(sp.symbols("p:3"))
    for h in range(3):
        exchanged = a.copy()
        exchanged[:, h] = sp.Matrix(sp.symbols("p:3"))
        proof.check(
            f"Cramer, head {h} of 3: c_h is det(a with p for a_h) / det(a), at most 1 in size "
            "where no exchange makes the volume larger",
            identical(coefficients[h], exchanged.det(method="berkowitz")),
            equation=23,
        )


def _prove_wendel(proof: Proof) -> None:
    """Random kernels: (24)."""
    for taps, dimension in ((3, 1), (4, 2), (5, 2), (5, 3), (6, 4)):
        rows = [[Fraction(t) ** k for k in range(dimension)] for t in range(1, taps + 1)]
        signs = list(product((1, -1), repeat=taps))
        positive_side = sum(
            case([[s * v for v in row] for s, row in zip(sign, rows, strict=True)]) == "a"
            for sign in signs
        )
        proof.check(
            f"{taps} taps in general position in dimension {dimension}: of all signs, the part of "
            "Wendel's formula is of case (a)",
            Fraction(positive_side, len(signs)) == wendel(taps, dimension)
            and all(rank(list(some)) == dimension for some in combinations(rows, dimension)),
            equation=24,
        )
    proof.check(
        "as many channels as taps: certain",
        all(wendel(n, d) == 1 for n in range(1, 9) for d in range(n, 9)),
        equation=24,
    )


def _prove_residual(proof: Proof) -> None:
    """What a layer of rounded heads leaves: (25)."""
    e, v = sp.Matrix(2, 3, sp.symbols("E:6")), sp.Matrix(2, 1, sp.symbols("V:2"))
    w, x = sp.Matrix(3, 1, sp.symbols("W:3")), sp.Matrix(3, 1, sp.symbols("X:3"))
    proof.check(
        "the layer less the convolution is Σ_j X_j (Σ_h E_hj V_h - W_j)",
        identical((v.T * e) * x - w.T * x, (e.T * v - w).T * x),
        equation=25,
    )


def _prove_cost(proof: Proof) -> None:
    """Products of a pixel and channel: (26)."""
    heads, taps, width = sp.symbols("H K D", positive=True)
    proof.check(
        "H (K² + D_out) = K² D_out at H = K² D_out / (K² + D_out)",
        equal((taps + width) * (taps * width / (taps + width)), taps * width)
        and positive(sp.diff(heads * (taps + width), heads)),
        equation=26,
    )
    proof.check(
        "3 x 3, 64 channels: 7 heads multiply less than the convolution, 8 more",
        7 * (9 + 64) < 9 * 64 < 8 * (9 + 64),
        equation=26,
    )
