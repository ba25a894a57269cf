"""T18. The stem needs one mixture more.

New here: about the layer and the stem of arXiv 1906.05909. The page
`docs/theorems/the_stem_needs_one_mixture_more.md` numbers the equations. Matrices are exact
fractions.
"""

from collections.abc import Sequence
from fractions import Fraction

import sympy as sp
from flint import fmpq, fmpq_mat

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative

__all__ = [
    "THEOREM",
    "additive",
    "least_mixtures",
    "mixtures_of",
    "prove",
    "squared_error",
]

THEOREM = Theorem(
    slug="the_stem_needs_one_mixture_more",
    number="T18",
    source="",
    title="The stem needs one mixture more",
    gist="stand-alone self-attention: what a constant channel, and spatially varying values, buy",
    claim=(
        "Without a constant channel stand-alone self-attention expresses just the convolutions "
        "without bias whose taps over the window are all alike, and its stem of M mixtures just "
        "ones with r + [1 not in V] ≤ M. "
        "Here V is the span of the kernel's entries as functions on the window, r its dimension. "
        "With mixtures of any logits so many suffice, exactly. Logits that are a sum over row and "
        "column, as published, can need more: the kernel ((1, 0), (0, 1)) of one channel, for "
        "which r + 1 = 2, takes three; two of them miss it by more than 2/3 in squares, and come "
        "as near to that as one likes. A mixture for each place of the window suffices for every "
        "kernel. With a constant channel in each head's group, and a window that holds the taps, "
        "the layer between two pointwise ones expresses every convolution as T3 does, zero borders "
        "included."
    ),
    hypotheses=(
        "scores are q·(k + r), q and k linear in the pixels of query and key, r an embedding of "
        "the place in the window; keys and values beyond the edge are zeros",
        "layer and convolution are equal for all images in some neighbourhood of 0, at a query "
        "whose window is on the grid",
        "the stem has one head",
        "mixtures: values are Σ_m p_m(a, b) W_m x, p a softmax over m",
    ),
    notation={
        "n": "places of the window",
        "p, (a, b)": "a place of the window, its row and column",
        "P": "the shares of the mixtures, n x M, rows of sum 1",
        "W_p": "the kernel's matrix at a place, zero where it has no tap",
        "V, r": "the column space of the flattened kernel, in R^n, and its dimension",
        "1": "the constant function on the window",
    },
    proof_idea=(
        "Scores vanish to first order at the zero image, so that the layer's derivative there is a "
        "uniform mean over the window: what is linear and equal to the layer is that. In the stem "
        "the kernel is then P times the mixtures' matrices, and P has 1 in its column space."
    ),
    references=("arXiv:1906.05909",),
    objects=("constructions.stock.stand_alone", "constructions.encodings.RowColumn"),
)


def least_mixtures(kernel: fmpq_mat) -> int:
    """Equation (5): r + [1 not in V] for a flattened kernel, one row for each place."""
    ones = fmpq_mat(kernel.nrows(), 1, [1] * kernel.nrows())
    return int(_beside(kernel, ones).rank())


def mixtures_of(kernel: fmpq_mat) -> tuple[fmpq_mat, fmpq_mat]:
    """Equation (6): positive shares of so many mixtures, rows of sum 1, and their matrices.

    Returns:
        P, (n, M), and the matrices W, (M, entries), with P W / n the kernel.
    """
    places = kernel.nrows()
    basis = [[fmpq(1)] * places]
    for column in range(kernel.ncols()):
        vector = [kernel[row, column] for row in range(places)]
        if fmpq_mat([*basis, vector]).rank() > len(basis):
            basis.append(vector)
    count = len(basis)
    largest = max((abs(v) for u in basis[1:] for v in u), default=fmpq(1))
    small = fmpq(1) / (2 * count * largest)
    others = [[(1 + small * v) / count for v in u] for u in basis[1:]]
    first = [1 - sum((u[row] for u in others), fmpq(0)) for row in range(places)]
    shares = fmpq_mat([first, *others]).transpose()
    # P has full column rank: the normal equations have one solution, which is exact.
    square = shares.transpose() * shares
    matrices = square.solve(shares.transpose() * (places * kernel))
    return shares, matrices


def additive(rows: Sequence[Fraction], columns: Sequence[Fraction]) -> fmpq_mat:
    """Shares of K1 K2 mixtures: mixture (c, d) has at (a, b) a product of two shares.

    Args:
        rows: e^L of each row, more than 1: its share of its own mixture, against 1.
        columns: of each column.
    """
    left, right = (_own(values) for values in (rows, columns))
    return fmpq_mat(
        [
            [left[a, c] * right[b, d] for c in range(len(rows)) for d in range(len(columns))]
            for a in range(len(rows))
            for b in range(len(columns))
        ]
    )


def squared_error(values: Sequence[Fraction]) -> Fraction:
    """Of a 2 x 2 kernel, row-major, against the identity matrix."""
    return sum(((w - v) ** 2 for w, v in zip((1, 0, 0, 1), values, strict=True)), Fraction(0))


def _own(values: Sequence[Fraction]) -> fmpq_mat:
    size = len(values)
    total = [v + size - 1 for v in values]
    return fmpq_mat(
        [
            [_q((values[a] if a == c else Fraction(1)) / total[a]) for c in range(size)]
            for a in range(size)
        ]
    )


def _q(number: Fraction) -> fmpq:
    return fmpq(number.numerator, number.denominator)


def _beside(left: fmpq_mat, right: fmpq_mat) -> fmpq_mat:
    rows = range(left.nrows())
    return fmpq_mat(
        [
            [left[i, j] for j in range(left.ncols())] + [right[i, j] for j in range(right.ncols())]
            for i in rows
        ]
    )


def prove() -> tuple[Step, ...]:
    """Establish every numbered equation of the page."""
    proof = Proof()
    _uniform(proof)
    _constant(proof)
    _mixtures(proof)
    _sums(proof)
    return proof.steps


def _uniform(proof: Proof) -> None:
    t = sp.Symbol("t", real=True)
    for n in (2, 3, 4):
        scores = [sp.Symbol(f"c{i}") * t**2 + sp.Symbol(f"e{i}") * t for i in range(n)]
        values = sp.symbols(f"v:{n}")
        weights = [sp.exp(s) / sum(map(sp.exp, scores)) for s in scores]
        layer = sum(w * t * v for w, v in zip(weights, values, strict=True))
        proof.check(
            f"{n} keys, the image t X: scores c t^2 + e t, values t v; the derivative at 0 is the "
            "mean of the values",
            equal(sp.diff(layer, t).subs(t, 0), sum(values) / n),
            equation=1,
        )
    v, x, n = sp.symbols("v x n", positive=True)
    proof.check(
        "queries of 0 score 0: n values of weight 1/n are the convolution of n equal taps V/n",
        identical(sum(v * xi / n for xi in (x, 2 * x)), (v / n) * sum((x, 2 * x))),
        equation=2,
    )


def _constant(proof: Proof) -> None:
    alpha, a, b, c, d = sp.symbols("alpha a b c d", real=True)
    proof.check(
        "the query α (2c, -1; 2d, -1) and the embeddings (a, a^2; b, b^2): the score is minus α "
        "times the squared distance from (c, d), and α (c^2 + d^2)",
        identical(
            alpha * (2 * c * a - a**2 + 2 * d * b - b**2),
            -alpha * ((a - c) ** 2 + (b - d) ** 2) + alpha * (c**2 + d**2),
        ),
        equation=3,
    )


def _mixtures(proof: Proof) -> None:
    for n, m in ((2, 2), (3, 2), (4, 3)):
        free = sp.Matrix(n, m - 1, lambda i, j: sp.Symbol(f"p{i}{j}"))
        shares = free.row_join(sp.ones(n, 1) - free * sp.ones(m - 1, 1))
        proof.check(
            f"{n} places, {m} mixtures, rows of sum 1: P times ones is the constant 1",
            identical(shares * sp.ones(m, 1), sp.ones(n, 1)),
            equation=4,
        )
    kernels = {
        "the identity of 2 x 2 places": [[1], [0], [0], [1]],
        "a constant": [[3], [3], [3], [3]],
        "zero": [[0], [0], [0]],
        "rank 2 with the constant": [[1, 0], [0, 1], [1, 0]],
        "four places, rank 3": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 2, 3]],
        "one place": [[-5, 2]],
    }
    for name, rows in kernels.items():
        kernel = fmpq_mat(rows)
        ones = fmpq_mat([[1]] * kernel.nrows())
        both = fmpq_mat([[*row, 1] for row in rows])
        without = int(both.rank() > kernel.rank())
        shares, matrices = mixtures_of(kernel)
        proof.check(
            f"{name}: with the constant beside it the rank is {least_mixtures(kernel)}, which is "
            f"{kernel.rank()} + {without}",
            least_mixtures(kernel) == kernel.rank() + without,
            equation=5,
        )
        proof.check(
            f"{name}: so many positive shares, of row sum 1, and their matrices give the kernel",
            least_mixtures(kernel) == shares.ncols()
            and all(shares[i, j] > 0 for i in range(shares.nrows()) for j in range(shares.ncols()))
            and bool(shares * fmpq_mat([[1]] * shares.ncols()) == ones)
            and bool(shares * matrices == kernel.nrows() * kernel),
            equation=6,
        )
    e = sp.symbols("e2:6")
    free = sp.symbols("u2:6")
    count = sp.Symbol("M", positive=True)
    proof.check(
        "columns (1 + e u_m)/M and 1 less their sum: a constant and the u_m are their span",
        identical(
            sum((1 + x * u) / count for x, u in zip(e, free, strict=True))
            + (1 - sum((1 + x * u) / count for x, u in zip(e, free, strict=True))),
            1,
        )
        and all(
            identical((count * ((1 + x * u) / count) - 1), x * u)
            for x, u in zip(e, free, strict=True)
        ),
        equation=6,
    )


def _sums(proof: Proof) -> None:
    x = sp.Symbol("x", positive=True)
    for size in (1, 2, 3, 4):
        own = sp.Matrix(size, size, lambda i, j: x if i == j else 1) / (x + size - 1)
        proof.check(
            f"{size} rows: the shares of a row's own mixture have the determinant "
            "((x - 1)/(x + K - 1))^(K - 1), not 0 for x = e^L > 1",
            equal(own.det(), ((x - 1) / (x + size - 1)) ** (size - 1)),
            equation=7,
        )
    f0, f1, g0, g1 = sp.symbols("f0 f1 g0 g1", real=True)
    proof.check(
        "f_0 + g_0 = f_1 + g_1 and f_0 + g_1 = f_1 + g_0: then g_0 = g_1, so all four are alike",
        identical(((f0 + g0) - (f1 + g1)) - ((f0 + g1) - (f1 + g0)), 2 * (g0 - g1)),
        equation=8,
    )
    t, a, b, p, q = sp.symbols("t a b p q", nonnegative=True)
    low = sp.Symbol("l", real=True)
    proof.check(
        "largest and smallest on the diagonal, the rest at least l = t >= 0: a^2 + b^2 + (1 - t)^2 "
        "- 2/3 with a = t + p, b = t + q is 3 (t - 1/3)^2 and more",
        identical(
            (t + p) ** 2 + (t + q) ** 2 + (1 - t) ** 2 - sp.Rational(2, 3),
            3 * (t - sp.Rational(1, 3)) ** 2 + 2 * t * p + p**2 + 2 * t * q + q**2,
        )
        and nonnegative((1 + t) ** 2 - 1),
        equation=9,
    )
    proof.check(
        "largest and smallest beside the diagonal, the diagonal at most l = s <= 1: s^2 + (1 - s + "
        "p)^2 + (1 - s + q)^2 - 2/3 is 3 (s - 2/3)^2 and more, and s^2 - 1 >= 0 beyond",
        identical(
            low**2 + (1 - low + p) ** 2 + (1 - low + q) ** 2 - sp.Rational(2, 3),
            3 * (low - sp.Rational(2, 3)) ** 2
            + 2 * (1 - low) * p
            + p**2
            + 2 * (1 - low) * q
            + q**2,
        )
        and nonnegative((1 + a) ** 2 - 1)
        and b.is_nonnegative is True,
        equation=9,
    )
    third = Fraction(1, 3)
    proof.check(
        "1 and three times 1/3 miss the identity by 2/3 in squares",
        squared_error([Fraction(1), third, third, third]) == Fraction(2, 3),
        equation=10,
    )
    y = sp.Symbol("y", positive=True)  # e^L
    total = y**2 + y**-2 + 1
    proof.check(
        "three mixtures of logits 2L, 0, 0, -2L, their negatives, and 0: the first two together "
        "have one share on the diagonal and 2/3 beside it, which differ unless e^L = 1",
        equal((y**2 + y**-2) / total - sp.Rational(2, 3), (y**2 - 1) ** 2 / (3 * y**2 * total)),
        equation=11,
    )
