"""T15. Ties cannot express convolution.

New here. First keys that a head cannot tell apart (no positions, symmetric ALiBi), then causal
ALiBi, whose heads see mixtures. `docs/theorems/ties_cannot_express_convolution.md` numbers the
equations. Floors are exact fractions; those of the standard slopes, irrational ones, are balls.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import permutations, product
from math import comb, prod

import sympy as sp
from flint import arb, arb_mat, fmpq_mat, fmpz_poly

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import ball, precision

__all__ = [
    "PATTERNS",
    "THEOREM",
    "delay_weights",
    "heads_needed",
    "median_floor",
    "prove",
    "shells",
    "standard_nodes",
    "standard_slope_floor",
    "wrapped",
]

THEOREM = Theorem(
    slug="ties_cannot_express_convolution",
    number="T15",
    source="",
    title="Ties cannot express convolution",
    gist="exact floors without positions and with ALiBi; what causal ALiBi really computes",
    claim=(
        "A layer whose heads score some keys alike, content apart, errs on a convolution by at "
        "least half of what rearranging the tied keys can change in its output, and some function "
        "that knows the ties errs by no more. "
        "For one channel that is half the sum of |W_δ − c|, c the median of each class of ties, "
        "and the kernel of medians with a constant attains it. "
        "Without positions all keys but the query's own tie: half the sum of |W_δ| over δ ≠ 0, "
        "for networks of any depth. In ALiBi without a mask δ and −δ tie: half the sum of the odd "
        "part; only kernels that depend on |δ_1| + … + |δ_d| come out. Causal ALiBi has no ties: "
        "its heads compute the causal convolution of the prefix, continued periodically, by a "
        "mixture of exponentials. With free slopes K heads reach K taps to any accuracy, and "
        "fewer do not; exactly, at all T queries, the unit delay takes φ(1) + … + φ(T) heads; the "
        "eight standard slopes come no nearer than a constant does from T = 19 on."
    ),
    hypotheses=(
        "a key's score and value depend on its content, the query's content and the key's class "
        "alone; the normaliser treats all keys alike",
        "images have values in [0, 1]; errors are maxima over images, one output channel at a time",
        "no positions: some query sees its whole window, and at least half of the other keys lie "
        "outside it",
        "causal ALiBi: scores are positional, slopes are finite and at least 0, softmax",
    ),
    notation={
        "κ": "the class of a key, all that its position shows to the query",
        "G": "the permutations of the keys that keep every key's class",
        "F": "the floor: the least error, over all functions that know the ties, on one output",
        "x_h = e^−m_h": "the node of a head of slope m_h; 0 < x_h ≤ 1",
        "j": "a lag, query minus key, in causal attention",
        "Z_q": "the polynomial 1 + x + … + x^q",
        "g": "the layer's kernel on an infinite past, Σ_h a_h (1 − x_h) x_h^j",
        "Φ_n, φ, μ": "cyclotomic polynomials, Euler's totient function, Möbius' function",
        "D(T)": "φ(1) + … + φ(T)",
    },
    proof_idea=(
        "Rearranging tied keys leaves the output as it is and moves the convolution's; half of the "
        "farthest move is lost. For causal ALiBi a geometric series shows that a row is wrapped "
        "around its prefix; polynomials with the nodes as roots and small coefficients are dual "
        "certificates; and all rows together are the rational functions with one fixed "
        "denominator, a product of cyclotomic polynomials."
    ),
    references=("arXiv:2108.12409",),
    objects=("constructions.encodings.Alibi",),
)

BITS = 400

# Exact floors -------------------------------------------------------------------------------------


def median_floor(classes: Sequence[Sequence[Fraction]]) -> Fraction:
    """Equation (6): half the sum of |W - c| over classes of one channel, c the class's median."""
    total = Fraction(0)
    for weights in classes:
        median = sorted(weights)[len(weights) // 2]
        total += sum((abs(w - median) for w in weights), Fraction(0))
    return total / 2


def shells(
    shape: Sequence[int], query: Sequence[int], kernel: Mapping[tuple[int, ...], Fraction]
) -> list[list[Fraction]]:
    """The weights of a kernel on the keys of a box, by their distance |δ_1| + ... + |δ_d|."""
    classes: dict[int, list[Fraction]] = {}
    for key in product(*map(range, shape)):
        delta = tuple(k - q for k, q in zip(key, query, strict=True))
        classes.setdefault(sum(map(abs, delta)), []).append(kernel.get(delta, Fraction(0)))
    return list(classes.values())


def wrapped(kernel: Sequence[Fraction], period: int) -> list[Fraction]:
    """A kernel on lags 0, 1, ..., its lags taken modulo the period: a row of equation (16)."""
    row = [Fraction(0)] * period
    for lag, weight in enumerate(kernel):
        row[lag % period] += weight
    return row


def heads_needed(length: int) -> int:
    """D(T), the number of heads of equations (21) to (23)."""
    return sum(fmpz_poly.cyclotomic(n).degree() for n in range(1, length + 1))


def delay_weights(nodes: Sequence[Fraction]) -> list[Fraction]:
    """Equation (17): the a_h with which s + 1 nodes below 1 approach a delay of s."""
    return [
        1 / ((1 - x) * prod((x - other for other in nodes if other != x), start=Fraction(1)))
        for x in nodes
    ]


# The standard slopes ------------------------------------------------------------------------------

PATTERNS = {
    9: "0000-0000",
    16: "00-0+0--0++0-0+0",
    18: "00-0++0--0++0--0+0",
    19: "0+-0+0+0-0++0+--0+0",
}
"""For each length, where the dual solution is 1 (+), -1 (-) or in between (0); found by HiGHS."""


def standard_nodes(heads: int = 8) -> list[arb]:
    """The nodes e^-m for the slopes m = 2^(-8h/H) of arXiv 2108.12409, h = 1, ..., H."""
    with precision(BITS):
        return [(-(arb(2) ** (-arb(8) * h / heads))).exp() for h in range(1, heads + 1)]


def standard_slope_floor(pattern: str, delay: int = 1) -> tuple[arb, arb]:
    """Equation (20): a dual and a primal value of the floor at the query with so many lags.

    The dual vector has the entries of the pattern, solved for where it is 0 so as to vanish at
    every node; the primal one meets the delay exactly at those lags.

    Raises:
        ValueError: the dual vector is not shown to have entries of at most 1.
    """
    with precision(BITS):
        nodes, signs = standard_nodes(), {"+": 1, "-": -1}
        basic = [j for j, sign in enumerate(pattern) if sign == "0"]
        fixed = {j: signs[sign] for j, sign in enumerate(pattern) if sign != "0"}
        matrix = arb_mat([[x**j for j in basic] for x in nodes])
        side = arb_mat([[-sum((s * x**j for j, s in fixed.items()), arb(0))] for x in nodes])
        solved = matrix.solve(side)
        dual = {j: arb(s) for j, s in fixed.items()} | {
            j: solved[i, 0] for i, j in enumerate(basic)
        }
        if not all(abs(dual[j]) < 1 for j in basic):
            raise ValueError(f"the pattern {pattern} is not a dual solution")
        weights = matrix.transpose().solve(arb_mat([[arb(int(j == delay))] for j in basic]))
        missed = arb(0)
        for j in fixed:  # at the basic lags nothing is missed
            seen = sum((weights[h, 0] * x**j for h, x in enumerate(nodes)), arb(0))
            missed += abs(int(j == delay) - seen)
        return dual[delay] / 2, missed / 2


# The proof ----------------------------------------------------------------------------------------

X = sp.Symbol("x", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T15, ties: equations (2) to (24) of its page."""
    proof = Proof()
    _prove_ties(proof)
    _prove_no_positions(proof)
    _prove_alibi(proof)
    _prove_wrapping(proof)
    _prove_delays(proof)
    _prove_exactness(proof)
    return proof.steps


def _prove_ties(proof: Proof) -> None:
    """Tied keys may be exchanged; what that costs, and what attains it: (2) to (7)."""
    own = sp.Symbol("X_q")
    one, other, third = sp.symbols("X_1 X_2 X_3")
    weight = sp.Function("w", positive=True)

    def head(first: sp.Symbol, second: sp.Symbol) -> sp.Expr:
        seen = ((own, 0), (first, 1), (second, 1), (third, 2))
        total = sum(weight(own, x, kind) for x, kind in seen)
        return sum(weight(own, x, kind) * x for x, kind in seen) / total

    proof.check(
        "one head, four keys: exchanging two of a class changes neither sum",
        equal(head(one, other), head(other, one)),
        equation=2,
    )
    y, a, b = sp.symbols("y a b", real=True)
    proof.check(
        "(a - y) + (y - b) = a - b, so that one of |y - a|, |y - b| is at least |a - b|/2",
        identical((a - y) + (y - b), a - b),
        equation=3,
    )
    p, n = sp.symbols("p n", nonnegative=True)
    proof.check(
        "a sum of positive parts p and negative parts n that is 0, p - n = 0, has p = (p + n)/2",
        identical(p.subs(p, n), ((p + n) / 2).subs(p, n)),
        equation=4,
    )
    proof.check(
        "three keys, weights -2, ..., 2, every permutation and every image of zeros and ones: the "
        "largest difference is half the sum of |W_k - W_πk|",
        all(
            2 * max(sum(d * x for d, x in zip(moved, image, strict=True)) for image in images)
            == sum(map(abs, moved))
            for images in [list(product((0, 1), repeat=3))]
            for weights in product(range(-2, 3), repeat=3)
            for order in permutations(range(3))
            for moved in [[w - weights[k] for w, k in zip(weights, order, strict=True)]]
        ),
        equation=4,
    )
    low, width = sp.symbols("l s", nonnegative=True)
    middle = low + width / 2
    proof.check(
        "the middle of a range is half the range from both ends",
        identical(low + width - middle, width / 2) and identical(middle - low, width / 2),
        equation=5,
    )
    c = sp.Symbol("c", real=True)
    proof.check(
        "a - b = (a - c) - (b - c)",
        identical((a - c) - (b - c), a - b),
        equation=6,
    )
    for size in range(1, 9):
        gaps = sp.symbols(f"g:{size}", nonnegative=True)
        rising = [sum(gaps[: i + 1]) for i in range(size)]
        pairs = ((min(i, size - 1 - i), max(i, size - 1 - i)) for i in range(size))
        reversal = sum(rising[j] - rising[i] for i, j in pairs)
        m = size // 2
        spread = sum(rising[max(i, m)] - rising[min(i, m)] for i in range(size))
        proof.check(
            f"the permutation that reverses the order attains it at the median, {size} keys",
            identical(reversal, 2 * spread) and nonnegative(spread),
            equation=6,
        )
    proof.check(
        "a linear form on [0, 1]^n runs from -n to p: from the middle, (p + n)/2 both ways",
        identical(p - (p - n) / 2, (p + n) / 2) and identical((p - n) / 2 + n, (p + n) / 2),
        equation=7,
    )


def _prove_no_positions(proof: Proof) -> None:
    """All keys but the query's own tie: (8) to (10)."""
    c, more = sp.symbols("c m", nonnegative=True)
    inside = sp.Symbol("p", nonnegative=True)
    proof.check(
        "p weights lose at most c each, p + m others gain c: the sum of |W - c| is least at 0",
        nonnegative(c * (inside + more) - c * inside),
        equation=8,
    )
    w = sp.Symbol("w", positive=True)
    proof.check(
        "w and n - 1 zeros, one exchanged for the first: a quarter of |w - 0| + |0 - w| is w/2",
        identical((sp.Abs(w - 0) + sp.Abs(0 - w)) / 4, w / 2),
        equation=9,
    )
    proof.check(
        "by medians too, for 1 and n - 1 zeros, n = 2, ..., 9",
        all(
            median_floor([[Fraction(1), *[Fraction(0)] * (n - 1)]]) == Fraction(1, 2)
            for n in range(2, 10)
        ),
        equation=9,
    )
    beta, r = sp.symbols("beta r", positive=True)
    decay = r * sp.exp(-beta * r**2)
    best = 1 / sp.sqrt(2 * beta)
    proof.check(
        "r exp(-β r^2) has the derivative (1 - 2 β r^2) exp(-β r^2)",
        identical(sp.diff(decay, r), (1 - 2 * beta * r**2) * sp.exp(-beta * r**2)),
        equation=10,
    )
    proof.check(
        "and its greatest value is (2 e β)^(-1/2)",
        identical(decay.subs(r, best) ** 2, 1 / (2 * sp.E * beta)),
        equation=10,
    )


def _prove_alibi(proof: Proof) -> None:
    """Mirror images and shells tie; 1 x 1 comes out: (11) to (14)."""
    a, b = sp.symbols("a b", real=True)
    proof.check(
        "a pair of taps loses half of |a - b|, which is half of 2 |(a - b)/2|, its odd part",
        identical(a - b, (a - b) / 2 + (a - b) / 2) and identical((a - b) / 2, -(b - a) / 2),
        equation=11,
    )
    row = (1, 2, 1)
    blur: dict[tuple[int, ...], Fraction] = {
        (i - 1, j - 1): Fraction(row[i] * row[j], 16) for i, j in product(range(3), repeat=2)
    }
    box = shells((5, 5), (2, 2), blur)
    proof.check(
        "the blur (1, 2, 1)(1, 2, 1)/16 loses 1/8: four diagonals tie with four keys outside",
        median_floor(box) == Fraction(1, 8),
        equation=12,
    )
    for size in (2, 3, 4):
        nodes = sp.symbols(f"x:{size}", positive=True)
        matrix = sp.Matrix(size, size, lambda i, j, nodes=nodes: nodes[i] ** j)
        differences = sp.Mul(*(nodes[j] - nodes[i] for j in range(size) for i in range(j)))
        proof.check(
            f"heads of distinct slopes are independent: Vandermonde, {size} heads",
            identical(matrix.det(method="berkowitz"), differences),
            equation=13,
        )
    tail = sp.Symbol("t", positive=True)  # t = x^N
    proof.check(
        "1 + 2 (x + ... + x^N) = (1 + x - 2 x^(N+1))/(1 - x), one more term",
        equal((1 + X - 2 * tail * X) / (1 - X) + 2 * tail * X, (1 + X - 2 * tail * X**2) / (1 - X)),
        equation=14,
    )


def _prove_wrapping(proof: Proof) -> None:
    """A row of causal ALiBi is its infinite kernel around the prefix: (15), (16), (24)."""
    power, full, lag = sp.symbols("P R Q", positive=True)  # x^p, its L-th power, x^j
    proof.check(
        "the sum of (1 - x) x^(j + l p) over l < L, one more term",
        equal(
            (1 - X) * lag * (1 - full) / (1 - power) + (1 - X) * lag * full,
            (1 - X) * lag * (1 - full * power) / (1 - power),
        ),
        equation=15,
    )
    proof.check(
        "Z_q (1 - x) = 1 - x^(q + 1), one more term",
        identical((1 - power) + power * (1 - X), 1 - power * X),
        equation=15,
    )
    proof.check(
        "Z_(pr-1) = Z_(p-1) (1 + x^p + ... + x^((r-1)p)), for periods up to 5",
        all(
            identical(
                sum(X**i for i in range(p * r)),
                sum(X**i for i in range(p)) * sum(X ** (p * k) for k in range(r)),
            )
            for p, r in product(range(1, 6), repeat=2)
        ),
        equation=16,
    )
    proof.check(
        "a delay of 2 that replicates the edge contradicts A_(1,0) = A_(3,0) + A_(3,2)",
        wrapped([Fraction(0), Fraction(0), Fraction(1)], 2) == [1, 0],
        equation=24,
    )


def _prove_delays(proof: Proof) -> None:
    """A delay of s takes s + 1 heads, and no fewer come near: (17) to (20)."""
    t = sp.Symbol("t")
    for size in (1, 2, 3):
        nodes = sp.symbols(f"x:{size}", positive=True)
        mixture = sum(
            1 / sp.Mul(*(x - other for other in nodes if other != x)) / (1 - x * t) for x in nodes
        )
        whole = t ** (size - 1) / sp.Mul(*(1 - x * t for x in nodes))
        proof.check(
            f"the lags of a divided difference have the generating function, {size} heads",
            equal(mixture, whole),
            equation=17,
        )
    n, i, x, previous, here = sp.symbols("n i x e f", positive=True)
    pascal = sp.binomial(n, i) + sp.binomial(n, i - 1)
    proof.check(
        "one more root: a coefficient e_i + x e_(i-1) with x <= 1 is at most e_i + e_(i-1)",
        identical((here + previous) - (here + x * previous), (1 - x) * previous),
        equation=18,
    )
    proof.check(
        "Pascal's rule",
        bool(sp.combsimp(pascal - sp.binomial(n + 1, i)) == 0)
        and all(comb(k + 1, j) == comb(k, j) + comb(k, j - 1) for k in range(9) for j in (1, 2)),
        equation=18,
    )
    for heads in range(1, 6):
        sums = sorted(sum(steps) for steps in product(*((0, 2**k) for k in range(heads))))
        proof.check(
            f"the exponents of a product of {heads} two-term factors differ, up to 2^{heads} - 1",
            sums == list(range(2**heads)),
            equation=19,
        )
    exact = {9: Fraction(38, 1000), 16: Fraction(383, 1000), 18: Fraction(495, 1000)}
    for length, pattern in PATTERNS.items():
        with precision(BITS):
            dual, primal = standard_slope_floor(pattern)
            if length in exact:
                between = exact[length], exact[length] + Fraction(1, 1000)
                holds = ball(between[0]) < dual and primal < ball(between[1])
            else:
                between = Fraction(1, 2), Fraction(1, 2)  # a constant errs by no more
                holds = dual == ball(between[0])
        proof.check(
            f"the eight standard slopes, {length} lags: a dual value of at least "
            f"{float(between[0])}, a primal one of at most {float(between[1])}",
            bool(holds),
            equation=20,
        )


def _prove_exactness(proof: Proof) -> None:
    """All rows at once are the polynomials over one denominator: (21) to (23)."""
    for length in range(1, 9):
        denominator = prod(
            (fmpz_poly.cyclotomic(n) for n in range(2, length + 1)), start=fmpz_poly([1])
        )
        rows = []
        for q in range(length):
            cofactor, rest = divmod(denominator, fmpz_poly([1] * (q + 1)))
            if rest != fmpz_poly([]):
                raise AssertionError("Z_q divides the denominator")
            for j in range(q + 1):
                shifted = cofactor * fmpz_poly([0] * j + [1])
                rows.append([int(shifted[i]) for i in range(heads_needed(length))])
        proof.check(
            f"the rows of all queries span the polynomials below degree D(T), T = {length}",
            fmpq_mat(rows).rank() == heads_needed(length) == denominator.degree() + 1,
            equation=21,
        )
    proof.check(
        "Φ_n divides Z_(n-1), n from 2 to 39, and 1 + x + x² is positive for x > 0",
        all(
            divmod(fmpz_poly([1] * n), fmpz_poly.cyclotomic(n))[1] == fmpz_poly([])
            and fmpz_poly.cyclotomic(n)(1) > 0
            for n in range(2, 40)
        )
        and positive(1 + X + X**2),
        equation=22,
    )
    proof.check(
        "Φ_n = 1 - μ(n) x + ..., for n from 2 to 60",
        all(
            fmpz_poly.cyclotomic(n)[0] == 1
            and fmpz_poly.cyclotomic(n)[1] == -sp.functions.combinatorial.numbers.mobius(n)
            for n in range(2, 61)
        ),
        equation=23,
    )
    f0, f1 = sp.symbols("f_0 f_1")
    delayed = sp.expand(X * (f0 + f1 * X))
    proof.check(
        "the unit delay reads f_0 + f_1 off f, and f_0 off x f",
        identical((f0 + f1 * X).subs(X, 0) + sp.diff(f0 + f1 * X, X).subs(X, 0), f0 + f1)
        and identical(delayed.subs(X, 0) + sp.diff(delayed, X).subs(X, 0), f0),
        equation=23,
    )
    more = sp.Symbol("k", integer=True, nonnegative=True)
    proof.check(
        "M(T) <= 1 - 1 + (T - 2) is less than T - 1 <= D(T) - 1 for T = 2 + k",
        positive((2 + more - 1) - (1 - 1 + (2 + more - 2))),
        equation=23,
    )
