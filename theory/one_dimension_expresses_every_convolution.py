"""T12. One dimension expresses every convolution.

The matrices are exact: powers of rationals, of python-flint. The constants of the construction that
the code uses are enclosed in balls.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import sympy as sp
from flint import arb, arb_mat, fmpq, fmpq_mat

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import ball, precision

__all__ = [
    "THEOREM",
    "amplification_bound",
    "coefficients",
    "exponentials",
    "powers",
    "prove",
    "row_sum_bound",
]

THEOREM = Theorem(
    slug="one_dimension_expresses_every_convolution",
    number="T12",
    source="",
    title="One dimension expresses every convolution",
    gist="one head more than taps, finite scores, no limit; conditioned like running sums",
    claim=(
        "With a positional encoding of dimension one, N + 1 heads of finite logits express every "
        "convolution of N taps exactly, on every padded grid and on every torus; on a window alone "
        "N heads do. "
        "The scores are c_h r_δ with distinct numbers c_h, distinct numbers r_δ for the taps, and "
        "one more, r_∘, for all other displacements; the weights e^(c_h r_δ) are an invertible "
        "matrix, and no limit is taken. N heads are too few for kernels of N linearly independent "
        "matrices, whatever the encoding; and the matrices of the heads depend on the number of "
        "keys, which cannot be avoided."
    ),
    hypotheses=(
        "the N offsets of the kernel are distinct, and on a torus distinct modulo the grid",
        "every query sees its whole window: the border is made of keys, or there is none",
        "the c_h are distinct, the r_δ of the taps and the r of all else are distinct",
        "the weights are the softmax of the scores, over the reals",
    ),
    notation={
        "N, T": "the number of taps, and of keys",
        "r_δ, r_∘": "the encoding of a tap's displacement, and of all others, numbers (D_p = 1)",
        "c_h": "the positional vector of head h, a number",
        "E": "the matrix E_hδ = e^(c_h r_δ), a row for each head, a column for each tap and r_∘",
        "Z_h": "the sum of the exponentials of head h over all keys",
        "B": "the coefficients b_hδ, the first N rows of the inverse of E, transposed",
        "V_h": "the matrix of head h, W_val^h W_out^h",
        "ρ, κ": "of the construction: r_j = ρ^j and κ = 4/ρ",
    },
    proof_idea=(
        "A sum of n exponentials has at most n - 1 zeros, by Rolle; so the matrix of exponentials "
        "is invertible, and its inverse tells the taps apart. All other keys weigh the same for a "
        "head, and one more head subtracts them."
    ),
    references=(
        "Gantmacher, Krein, Oscillation Matrices and Kernels, chapter II (total positivity)",
        "arXiv:1911.03584, Theorem 1 (D_p >= 3)",
    ),
    objects=(
        "constructions.encodings.Scalar",
        "constructions.certificate.mixing_bound",
    ),
)

OUTSIDE = 16  # minus the score of a key outside of the window at the last of the first N heads
VISIBLE = 4  # minus the score of the first tap that a head should not see


# Exact matrices -----------------------------------------------------------------------------------


def powers(bases: Sequence[Fraction], exponents: Sequence[int]) -> fmpq_mat:
    """The matrix of y_h^(r_δ): weights e^(c_h r_δ) for y_h = e^(c_h), exact."""
    rows = [fmpq(y.numerator, y.denominator) for y in bases]
    return fmpq_mat(len(rows), len(exponents), [y**r for y in rows for r in exponents])


def coefficients(weights: fmpq_mat, taps: int) -> list[list[Fraction]]:
    """b_hδ by (4): Σ_h b_hδ E_hj = [j = δ], for the first `taps` columns δ of a square E.

    Raises:
        ZeroDivisionError: E is singular.
    """
    inverse = weights.inv()
    entries = [[inverse[tap, head] for tap in range(taps)] for head in range(weights.nrows())]
    return [[Fraction(int(b.p), int(b.q)) for b in row] for row in entries]


def alternates(weights: fmpq_mat) -> bool:
    """Whether det E > 0 and the entries of its inverse have the signs of (8)."""
    inverse, n = weights.inv(), weights.nrows()
    return weights.det() > 0 and all(
        (-1) ** (i + j) * inverse[i, j] > 0 for i in range(n) for j in range(n)
    )


# The construction ---------------------------------------------------------------------------------


def exponentials(taps: int, bits: int) -> arb_mat:
    """F of (15) with ρ = 2^bits: rows are heads, columns are the taps in order and all else."""
    kappa = Fraction(VISIBLE, 2**bits)
    rows = []
    for head in range(taps):
        scores = [kappa * Fraction(2) ** (bits * (j - head)) for j in range(taps)]
        scores.append(OUTSIDE * Fraction(2) ** (bits * (taps - 1 - head)))
        rows.append([(-ball(s)).exp() for s in scores])
    return arb_mat([*rows, [arb(1)] * (taps + 1)])


def row_sum_bound(bits: int) -> arb:
    """The number g of (16) for ρ = 2^bits."""
    omega = arb(-VISIBLE).exp()
    return ball(Fraction(2 * VISIBLE, 2**bits)) + omega * (2 - omega) / (1 - omega)


def amplification_bound(taps: int, keys: int, bits: int) -> arb:
    """The bound (17) on Σ_h |b_hδ| Z_h, for every tap."""
    omega, outside = arb(-VISIBLE).exp(), arb(-OUTSIDE).exp()
    total = 2 * taps - 1 + 2 * omega / (1 - omega) + 4 * keys * outside
    return total / (1 - row_sum_bound(bits))


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Prove T12: equations (2) to (22) of its page."""
    proof = Proof()
    _prove_system(proof)
    _prove_invertible(proof)
    _prove_signs(proof)
    _prove_too_few(proof)
    _prove_keys(proof)
    _prove_border(proof)
    _prove_conditioning(proof)
    _prove_floating_point(proof)
    return proof.steps


def _prove_system(proof: Proof) -> None:
    """What the layer does to each key, and the matrices that it needs: (2) to (4), (9)."""
    for taps, others in ((1, 2), (2, 2), (2, 0)):
        heads, keys = taps + (others > 0), taps + others
        entries = sp.Matrix(heads, heads, lambda i, j: sp.Symbol(f"E{i}{j}"))
        column = [min(k, taps) for k in range(keys)]  # all keys but the taps look alike
        sums = [sum(entries[h, column[k]] for k in range(keys)) for h in range(heads)]
        where = f"{taps} taps, {others} other keys, {heads} heads"
        outside = [others * entries[h, taps] if others else 0 for h in range(heads)]
        proof.check(
            f"{where}: the sum over all keys is that over the taps and one term times the others",
            all(identical(sums[h], sum(entries[h, :taps]) + outside[h]) for h in range(heads)),
            equation=2,
        )
        of_heads, pixels = sp.symbols(f"V:{heads}"), sp.symbols(f"X:{keys}")
        output = sum(
            of_heads[h]
            * sum(entries[h, c] / sums[h] * x for c, x in zip(column, pixels, strict=True))
            for h in range(heads)
        )
        parts = [
            sum(entries[h, column[k]] / sums[h] * of_heads[h] for h in range(heads))
            for k in range(keys)
        ]
        proof.check(
            f"{where}: a key's part of the output is Σ_h (E_hδ / Z_h) V_h",
            all(equal(sp.diff(output, x), part) for x, part in zip(pixels, parts, strict=True)),
            equation=3,
        )
        kernel, inverse = sp.symbols(f"W:{taps}"), entries.adjugate() / entries.det()
        solved = {
            v: sums[h] * sum(inverse[j, h] * kernel[j] for j in range(taps))
            for h, v in enumerate(of_heads)
        }
        wanted = [*kernel, *[sp.S.Zero] * others]
        proof.check(
            f"{where}: with V_h = Z_h Σ_δ b_hδ W_δ it is W_δ at a tap and 0 elsewhere",
            all(equal(p.subs(solved), w) for p, w in zip(parts, wanted, strict=True)),
            equation=4 if others else 9,
        )


def _prove_invertible(proof: Proof) -> None:
    """A sum of n exponentials has at most n - 1 zeros: (5), (6)."""
    t = sp.Symbol("t", real=True)
    gap, a = sp.Symbol("g", nonzero=True), sp.Symbol("a", nonzero=True)
    for n in (2, 3, 4, 5):
        rates, sizes = sp.symbols(f"c:{n}", real=True), sp.symbols(f"a:{n}", real=True)
        divided = sum(s * sp.exp((c - rates[0]) * t) for c, s in zip(rates, sizes, strict=True))
        later = list(zip(rates, sizes, strict=True))[1:]
        derivative = sum((c - rates[0]) * s * sp.exp((c - rates[0]) * t) for c, s in later)
        proof.check(
            f"divided by its first term and derived, a sum of {n} exponentials has one term less",
            identical(sp.diff(divided, t), derivative),
            equation=5,
        )
    proof.check(
        "a difference of rates and a coefficient, neither 0, have a product other than 0",
        (gap * a).is_nonzero is True,
        equation=5,
    )
    proof.check(
        "no determinant vanishes: all choices of up to 4 of 5 bases and of 5 exponents",
        all(
            powers([Fraction(y) for y in bases], exponents).det() != 0
            for n in (1, 2, 3, 4)
            for bases in combinations((1, 2, 3, 5, 7), n)
            for exponents in combinations((-3, -1, 0, 2, 5), n)
        ),
        equation=6,
    )


def _prove_signs(proof: Proof) -> None:
    """All minors are positive in order, and the inverse alternates: (7), (8)."""
    s = sp.Symbol("s", nonnegative=True)
    rest, step, other = sp.symbols("q g f", positive=True)
    proof.check(
        "a step of a mixture of two increasing sequences, q g + s f with q + s = 1, is positive",
        positive(rest * step + s * other),
        equation=7,
    )
    for n in (2, 3, 4):
        y = sp.symbols(f"y:{n}", positive=True)
        determinant = sp.Matrix(n, n, lambda i, j, y=y: y[j] ** i).det(method="berkowitz")
        product = sp.Mul(*(y[j] - y[i] for i, j in combinations(range(n), 2)))
        proof.check(
            f"at c = 0, 1, .., {n - 1} it is Vandermonde's, the product of the differences",
            identical(determinant, product),
            equation=7,
        )
    y = sp.symbols("y:3", positive=True)
    product = sp.Mul(*(y[j] - y[i] for i, j in combinations(range(3), 2)))
    for exponents in ((0, 1, 3), (0, 2, 3), (1, 2, 5)):
        minor = sp.Matrix(3, 3, lambda i, j, e=exponents: y[i] ** e[j]).det(method="berkowitz")
        quotient = sp.Poly(minor, *y).exquo(sp.Poly(product, *y))
        proof.check(
            f"exponents {exponents}: det / Vandermonde is a polynomial of positive coefficients",
            all(bool(c > 0) for c in quotient.coeffs()),
            equation=7,
        )
    matrix = sp.Matrix(3, 3, lambda i, j: sp.Symbol(f"E{i}{j}"))
    adjugate = matrix.adjugate()
    proof.check(
        "3 x 3: row j and column h of the adjugate is (-1)^(h + j) times the minor without h and j",
        all(
            identical(adjugate[j, h], (-1) ** (h + j) * matrix.minor(h, j))
            for h in range(3)
            for j in range(3)
        ),
        equation=8,
    )
    proof.check(
        "the inverse alternates for y_h = h/3 and r_j = j², 1 to 7 heads",
        all(
            alternates(powers([Fraction(y, 3) for y in range(1, n)], [j * j for j in range(1, n)]))
            for n in range(2, 9)
        ),
        equation=8,
    )


def _prove_too_few(proof: Proof) -> None:
    """What N heads can do: (10), and cannot: (11)."""
    e = sp.Matrix(2, 3, lambda i, j: sp.Symbol(f"E{i}{j}"))
    window, outside = e[:, :2], e[:, 2]
    mixture = window.adjugate() / window.det() * outside
    proof.check(
        "two taps, Cramer: the condition's coefficients are quotients of minors of E",
        equal(mixture[0], sp.Matrix.hstack(outside, e[:, 1]).det() / window.det())
        and equal(mixture[1], sp.Matrix.hstack(e[:, 0], outside).det() / window.det()),
        equation=10,
    )
    matrices = sp.Matrix(sp.symbols("W:2"))
    heads = (window.adjugate() / window.det()).T * matrices  # M, with M^T E_window = W^T
    proof.check(
        "two taps: what two heads leave at the other keys is that combination of the kernel",
        equal((heads.T * outside)[0], (mixture.T * matrices)[0]),
        equation=10,
    )
    for n in range(1, 7):
        weights = powers([Fraction(i + 1) for i in range(n)], range(n + 1))
        square = fmpq_mat(n, n, [weights[i, j] for i in range(n) for j in range(n)])
        last = fmpq_mat(n, 1, [weights[i, n] for i in range(n)])
        mixed = square.inv() * last
        proof.check(
            f"{n} taps: its coefficients alternate, and none is 0",
            all((-1) ** (n - 1 - j) * mixed[j, 0] > 0 for j in range(n)),
            equation=10,
        )
    attention, other = sp.Matrix(2, 2, sp.symbols("a:4")), sp.Matrix(1, 2, sp.symbols("o:2"))
    left = other * attention.T.adjugate() / attention.det()  # at the key outside, for W = I
    proof.check(
        "two taps: what is left at another key is 0 only if no head looks there",
        all(equal(entry, o) for entry, o in zip(left * attention.T, other, strict=True)),
        equation=11,
    )


def _prove_keys(proof: Proof) -> None:
    """Z grows with every key, and fixed matrices serve few sizes: (12)."""
    keys = sp.Symbol("T", positive=True)
    weight = sp.Symbol("w", nonzero=True)
    base, other = sp.symbols("A o", positive=True)
    proof.check(
        "one more key adds its exponential to Z, a positive number",
        identical((base + (keys + 1) * other) - (base + keys * other), other) and positive(other),
        equation=12,
    )
    for heads in (1, 2, 3):
        inside, seen, parts = (sp.symbols(f"{n}:{heads}", positive=True) for n in "Aov")
        sums = [a + o * keys for a, o in zip(inside, seen, strict=True)]
        cleared = -weight * sp.Mul(*sums) + sum(
            v * sp.Mul(*(z for j, z in enumerate(sums) if j != h)) for h, v in enumerate(parts)
        )
        polynomial = sp.Poly(sp.expand(cleared), keys)
        proof.check(
            f"{heads} heads: cleared of its denominators, the condition has degree {heads} in T",
            polynomial.degree() == heads
            and identical(polynomial.LC(), -weight * sp.Mul(*seen))
            and (weight * sp.Mul(*seen)).is_nonzero is True,
            equation=12,
        )


def _prove_border(proof: Proof) -> None:
    """Where a query misses a tap, other matrices would be needed: (13)."""
    b_j, b_m, x_j, ratio, total, missed, other = sp.symbols("b_j b_m x_j z Z E o")
    proof.check(
        "at W_j: z b_j = b_j + b_m x_j says (z - 1) b_j = b_m x_j",
        identical(ratio * b_j - (b_j + b_m * x_j), (ratio - 1) * b_j - b_m * x_j),
        equation=13,
    )
    proof.check(
        "a ratio Z / Z' is 1 only where the missed tap weighs what all else does",
        equal(total / (total - missed + other) - 1, (missed - other) / (total - missed + other)),
        equation=13,
    )


def _prove_conditioning(proof: Proof) -> None:
    """The construction is conditioned as the running sums are: (14) to (18)."""
    rho, kappa, x, y = sp.symbols("rho kappa x y", positive=True)
    j, h = sp.symbols("j h", integer=True)
    proof.check(
        "c_h r_j = -κ ρ^(j - h), and at the last of the first N heads all else scores -16",
        identical(sp.powsimp(-kappa * rho ** (-h) * rho**j), -kappa * rho ** (j - h))
        and equal(-4 / rho * 4 * rho, sp.Integer(-OUTSIDE)),
        equation=14,
    )
    rest = x - (1 - sp.exp(-x))
    proof.check(
        "1 - e^-x <= x: their difference is 0 at 0, and its derivative 1 - e^-x is not negative",
        rest.subs(x, 0) == 0 and identical(sp.diff(rest, x), 1 - sp.exp(-x)),
        equation=15,
    )
    proof.check(
        "so e^-a - e^-b <= e^-a (b - a), for b = a + y",
        identical(sp.exp(-x) - sp.exp(-(x + y)), sp.exp(-x) * (1 - sp.exp(-y))),
        equation=15,
    )
    for n in (1, 2, 3, 6):
        steps = sum(rho ** (-i) - rho ** (-i - 1) for i in range(n))
        proof.check(
            f"the first {n} differences telescope to κ (1 - ρ^-{n})",
            identical(kappa * steps, kappa * (1 - rho ** (-n))),
            equation=16,
        )
    m = sp.Symbol("m", integer=True, nonnegative=True)
    more = sp.Symbol("r", positive=True)
    proof.check(
        "ρ^m >= 1 + m by induction, ρ = 2 + r: ρ (1 + m) >= 2 + m",
        nonnegative((2 + more) * (1 + m) - (2 + m)),
        equation=16,
    )
    with precision(256):
        proof.check(
            "g < 0.54 for ρ = 16 and g < 0.07 for ρ = 256; e^-16 < 1/8",
            bool(row_sum_bound(4) < ball(Fraction(54, 100)))
            and bool(row_sum_bound(8) < ball(Fraction(7, 100)))
            and bool(arb(-OUTSIDE).exp() < ball(Fraction(1, 8))),
            equation=16,
        )
        for bits in (4, 5, 6, 7, 8):
            proof.check(
                f"ρ = 2^{bits}, 1, 2 and 5 taps: the rows of |G| sum to at most g",
                all(_rows_within(taps, bits) for taps in (1, 2, 5)),
                equation=16,
            )
            proof.check(
                f"ρ = 2^{bits}, 1, 2 and 5 taps: the amplification is within its bound",
                all(_amplified_within(*sizes, bits) for sizes in ((1, 1), (2, 50), (5, 10**6))),
                equation=17,
            )
    proof.check(
        "2 (T - N) + (T + N + 1/2 + T/8) / (1 - 1/8) <= 4 T, for T >= N >= 1",
        nonnegative(
            4 * (1 + m + more)
            - 2 * more
            - sp.Rational(8, 7) * ((1 + m + more) * sp.Rational(9, 8) + (1 + m) + sp.Rational(1, 2))
        ),
        equation=17,
    )
    sizes = [(taps, min(8, 1021 // taps)) for taps in range(1, 256)]
    proof.check(
        "up to 255 taps some ρ = 2^b, 4 <= b <= 8, keeps every r and every score below 2^1024",
        all(bits >= 4 and 2 + bits * taps < 1024 for taps, bits in sizes) and 1021 // 256 < 4,
        equation=18,
    )


def _rows_within(taps: int, bits: int) -> bool:
    """(16): the rows of |G| sum to at most g."""
    weights, size = exponentials(taps, bits), taps + 1
    sums = arb_mat([[int(j <= i) for j in range(size)] for i in range(size)])
    off = sums.inv() * weights - arb_mat([[int(i == j) for j in range(size)] for i in range(size)])
    return all(
        bool(sum((abs(off[i, j]) for j in range(size)), arb(0)) <= row_sum_bound(bits))
        for i in range(size)
    )


def _amplified_within(taps: int, keys: int, bits: int) -> bool:
    """(17): Σ_h |b_hδ| Z_h is within its bound, for every tap."""
    weights = exponentials(taps, bits)
    inverse = weights.inv()
    magnitudes = arb_mat([[abs(inverse[i, h]) for h in range(taps + 1)] for i in range(taps)])
    sums = weights * arb_mat([[1]] * taps + [[keys - taps]])
    limit = amplification_bound(taps, keys, bits)
    return all(bool(total <= limit) for total in (magnitudes * sums).entries())


def _prove_floating_point(proof: Proof) -> None:
    """Scores, matrices and coefficients in floating point: (19) to (22)."""
    proof.check(
        "3 κ u <= u for κ = 4/ρ, ρ = 2^4, ..., 2^8",
        all(3 * Fraction(VISIBLE, 2**bits) <= 1 for bits in range(4, 9)),
        equation=19,
    )
    gain, matrix, first, second, third = sp.symbols("Z M d e f", positive=True)
    computed = gain * (1 + second) * (matrix + first) * (1 + third)
    proof.check(
        "rounded matrix times rounded gain, rounded: Z d + ((1 + e)(1 + f) - 1) Z (|M| + d)",
        identical(
            computed - gain * matrix,
            gain * first + ((1 + second) * (1 + third) - 1) * gain * (matrix + first),
        ),
        equation=20,
    )
    p, seen, wrong, noise = sp.symbols("P S D n")
    proof.check(
        "(P + D)(S + n) - P S = (P + D) n + D S",
        identical((p + wrong) * (seen + noise) - p * seen, (p + wrong) * noise + wrong * seen),
        equation=21,
    )
    e, b = sp.Matrix(2, 2, sp.symbols("E:4")), sp.Matrix(2, 2, sp.symbols("b:4"))
    x, w = sp.Matrix(sp.symbols("X:2")), sp.Matrix(1, 2, sp.symbols("W:2"))
    residual = b.T * e - sp.eye(2)
    proof.check(
        "coefficients that leave a residual Q err by Σ_δ W_δ Σ_k Q_δk X_k",
        identical((w * b.T) * (e * x) - w * x, w * residual * x),
        equation=22,
    )
