"""T4. Attention is soft padding, then convolution.

New here. The page `docs/theorems/attention_is_soft_padding_then_convolution.md` numbers the
equations.

Scores, pixels and matrices are symbols, and the normaliser is an unknown function of a row. What
ranges over all grids or all numbers of heads is reduced to one term more. The constants of floating
point are balls of python-flint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import comb, prod

import sympy as sp
from flint import arb

from theory.saturated_softmax_is_one_hot import ACCUMULATOR, EXP_ROUNDOFFS, FORMATS, Format
from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import ball, precision

__all__ = [
    "THEOREM",
    "StepError",
    "band",
    "compounded",
    "multiplications",
    "prove",
    "rescaling_error",
    "rounding_of_the_mass",
    "rounding_of_the_seen",
    "soft_padding_row",
    "softmax_error",
]

BITS = 256

THEOREM = Theorem(
    slug="attention_is_soft_padding_then_convolution",
    number="T4",
    source="",
    title="Attention is soft padding, then convolution",
    gist="one operator behind every head: start here",
    claim=(
        "Attention whose heads score keys by displacement from query plus shift, and otherwise "
        "alike, is one operator P, the same for all heads, followed by the ordinary convolution. "
        "Row t of P says what attention sees at position t, on the image or beyond its border; the "
        "factorisation is exact for every normaliser that acts row by row, every sharpness, box, "
        "stride, border and sink. A layer of fixed weights has such a P if and only if heads that "
        "look at one position have one row there. For softmax and scores that are sums over axes "
        "P = r (P_1 ⊗ … ⊗ P_d), one small matrix for each axis and, with a sink, one factor for "
        "each row. So the layer errs by conv((P − P_∞)X), which for quadratic scores on keys one "
        "apart, without a sink, is e^−α times a discrete Laplacian, to first order; it costs a "
        "blur and one convolution for all heads together; and its gradients are P's."
    ),
    hypotheses=(
        "head h scores key k at query q by s(k − q − Δ_h), with one function s for all heads; "
        "there may be a sink, one more key, of zero value and constant score",
        "the weights are a function of the row of scores, the same for every row",
        "for the product over axes: softmax, a box of keys, s a sum over the axes",
        "for the expansions and the band: s(δ) = −α‖δ‖² and keys one apart",
        "for the rounding: the model of T7, and no row with γ_n > 1",
    ),
    notation={
        "q, k, t = q + Δ_h": "positions of queries, keys and targets",
        "A^h": "weights of head h, queries × keys",
        "P": "soft padding, targets × keys; P_i its factor on axis i; P_∞ its limit",
        "W_h": "W_val^h W_out^h, the matrix that head h applies",
        "Z_t, r_t": "sum of the exponentials of row t, and what a sink leaves of the row",
        "ϑ": "Jacobi's ϑ function, Σ x^(n²)",
        "α, x = e^−α": "sharpness, and the weight of a nearest neighbour",
        "c": "height of the sink: its score is −cα",
        "D": "largest distance of a key's pixel from the pixel that a row converges to",
        "n_i, T_i": "keys and targets on axis i; T is the product of the T_i",
        "Λ, R": "weight off the limit before normalisation, and the largest modulus of a pixel",
        "u, η, ν, γ_n, κ, τ": "rounding, as in T7",
    },
    proof_idea=(
        "k − q − Δ = k − (q + Δ): the row of scores, so the row of weights, depends on the target "
        "alone. Exponentials turn sums over axes into products, over a box the sum of a product is "
        "the product of the sums, and a sink adds one term to it. All else is read off P."
    ),
    references=(
        "arXiv:1911.03584",
        "arXiv:2205.13401 (softmax maps constants to constants)",
        "arXiv:1909.03469 (rounding of softmax)",
    ),
    objects=(
        "constructions.SoftPadding",
        "constructions.attention_from_conv",
        "constructions.MultiHeadSelfAttention.soft_padding",
        "constructions.MultiHeadSelfAttention.shares_structure",
        "constructions.certificate.head_rounding",
    ),
)

Point = tuple[int, ...]

X = sp.Symbol("x", positive=True)


def prove() -> tuple[Step, ...]:
    """Establish the numbered equations of the page."""
    proof = Proof()
    _one_operator(proof)
    _what_must_be_shared(proof)
    _one_matrix_for_each_axis(proof)
    _nothing_is_forgotten(proof)
    _error(proof)
    _error_with_a_sink(proof)
    _cost(proof)
    _gradients(proof)
    with precision(BITS):
        _relative_rounding(proof)
        _rescaling(proof)
        _rounding_by_mass(proof)
    return proof.steps


# One operator -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """A layer of positional heads on small lattices, everything in it a symbol.

    Attributes:
        name: what is special about it.
        keys: where the keys stand.
        shifts: the heads' shifts; two may be equal.
        queries: where the queries stand.
        sink: whether there is one more key, of zero value and constant score.
        biased: whether every key adds a score of its own, the same for all heads.
    """

    name: str
    keys: tuple[Point, ...]
    shifts: tuple[Point, ...]
    queries: tuple[Point, ...]
    sink: bool = False
    biased: bool = False

    def weights(self, displacements: Iterable[Point]) -> tuple[sp.Expr, ...]:
        """The weights of the keys: an unknown function of the row of their scores and the sink's.

        Args:
            displacements: of every key from the target; a score is a symbol of its displacement.
        """
        row = [sp.Symbol(f"s{displacement}") for displacement in displacements]
        if self.biased:
            row = [s + sp.Symbol(f"c{k}") for s, k in zip(row, self.keys, strict=True)]
        row += [sp.Symbol("sink")] if self.sink else []
        return tuple(sp.Function("N")(sp.Integer(i), *row) for i in range(len(self.keys)))

    def dense(self) -> dict[Point, sp.Expr]:
        """The output at each query by definition: every head at every query for itself."""
        outputs = {}
        for q in self.queries:
            total = sp.Symbol("b", commutative=False)
            for h, shift in enumerate(self.shifts):
                from_query = (minus(k, q) for k in self.keys)
                weights = self.weights(minus(delta, shift) for delta in from_query)
                total += sum(map(sp.Mul, weights, self.pixels)) * self.matrices[h]
            outputs[q] = total
        return outputs

    def factored(self) -> dict[Point, sp.Expr]:
        """The output at each query by one row for each target, and then the convolution."""
        targets = {plus(q, shift) for q in self.queries for shift in self.shifts}
        padded = {
            t: sum(map(sp.Mul, self.weights(minus(k, t) for k in self.keys), self.pixels))
            for t in targets
        }
        bias = sp.Symbol("b", commutative=False)
        return {
            q: sum(
                (padded[plus(q, shift)] * w for shift, w in zip(*self.taps, strict=True)),
                start=bias,
            )
            for q in self.queries
        }

    @property
    def taps(self) -> tuple[Sequence[Point], Sequence[sp.Expr]]:
        """The offsets of the convolution and their matrices: heads of one shift add up."""
        offsets = sorted(set(self.shifts))
        matrices = [
            sum(w for w, shift in zip(self.matrices, self.shifts, strict=True) if shift == offset)
            for offset in offsets
        ]
        return offsets, matrices

    @property
    def pixels(self) -> tuple[sp.Symbol, ...]:
        """One symbol for each key; pixels and matrices do not commute."""
        return tuple(sp.Symbol(f"X{k}", commutative=False) for k in self.keys)

    @property
    def matrices(self) -> tuple[sp.Symbol, ...]:
        """One symbol for each head."""
        return tuple(sp.Symbol(f"W{h}", commutative=False) for h in range(len(self.shifts)))


def plus(a: Point, b: Point) -> Point:
    """The sum of two points."""
    return tuple(i + j for i, j in zip(a, b, strict=True))


def minus(a: Point, b: Point) -> Point:
    """The difference of two points."""
    return tuple(i - j for i, j in zip(a, b, strict=True))


def box(*shape: int) -> tuple[Point, ...]:
    """All points of a box grid, row-major."""
    return tuple(product(*map(range, shape)))


LAYERS = (
    Heads("3 taps, padding 1", box(4), ((-1,), (0,), (1,)), box(4)),
    Heads("stride 2, dilation 2, a sink", box(4), ((-2,), (0,), (2,)), ((0,), (2,)), sink=True),
    Heads("two heads of one shift", box(3), ((0,), (1,), (0,)), box(3)),
    Heads("transposed, stride 2, a sink", ((0,), (2,)), ((-1,), (0,)), box(4), sink=True),
    Heads("2-D, even kernel", box(2, 3), ((0, 0), (0, 1), (1, 0), (1, 1)), box(2, 2), sink=True),
    Heads("3-D", box(2, 1, 2), ((-1, 0, 1), (0, 0, 0)), box(2, 2, 1), sink=True),
)


def _one_operator(proof: Proof) -> None:
    k, q, shift = sp.symbols("k q Delta")
    proof.check(
        "on every axis (k − q) − Δ = k − (q + Δ): the score depends on key and target alone",
        identical((k - q) - shift, k - (q + shift)),
        equation=2,
    )
    padded, matrix, others = sp.symbols("PX_t W_h Y", commutative=False)
    weight, pixel, rest = sp.symbols("A_qk X_k R", commutative=False)
    proof.check(
        "one more key, and one more head, add the same to the layer as to the convolution of PX",
        identical((rest + weight * pixel) * matrix, rest * matrix + weight * pixel * matrix)
        and identical(others + padded * matrix, padded * matrix + others),
        equation=3,
    )
    for layer in LAYERS:
        proof.check(
            f"the layer is conv ∘ P for an unknown normaliser and unknown scores: {layer.name}",
            _same(layer.dense(), layer.factored()),
            equation=3,
        )
    pixels, matrices = sp.symbols("X_0:3"), sp.symbols("W_0:2")
    heads, rows = sp.symbols("A_0:2(0:3)"), sp.symbols("P_0:2(0:3)")
    terms = [w * pixel for w in matrices for pixel in pixels]
    difference = sum((a - p) * term for a, p, term in zip(heads, rows, terms, strict=True))
    coefficients = sp.Poly(difference, *pixels, *matrices)
    proof.check(
        "two heads, three keys: the coefficient of X_k W_h in the difference is that of weights",
        all(
            identical(coefficients.coeff_monomial(term), a - p)
            for a, p, term in zip(heads, rows, terms, strict=True)
        ),
        equation=4,
    )
    proof.check(
        "heads of offsets 0 and 1 at two queries, weights 0 or 1: a P serves just if they agree "
        "where they meet",
        _factors_where_heads_agree(),
        equation=4,
    )


def _factors_where_heads_agree() -> bool:
    """Whether some P serves just those layers whose heads agree where they meet.

    Two heads, of the offsets 0 and 1, two queries and one key, which meet at the position 1. Every
    weight is 0 or 1, and so is every entry of the P that are tried.
    """
    pixel, first, second = sp.symbols("X W_0 W_1", commutative=False)
    for weights in product((0, 1), repeat=4):
        table = {(h, q): a for (h, q), a in zip(product((0, 1), repeat=2), weights, strict=True)}
        outputs = [table[0, q] * pixel * first + table[1, q] * pixel * second for q in (0, 1)]
        found = any(
            all(
                identical(outputs[q], rows[q] * pixel * first + rows[q + 1] * pixel * second)
                for q in (0, 1)
            )
            for rows in product((0, 1), repeat=3)
        )
        if found is not (table[0, 1] == table[1, 0]):
            return False
    return True


def _same(left: Mapping[Point, sp.Expr], right: Mapping[Point, sp.Expr]) -> bool:
    return left.keys() == right.keys() and all(identical(left[q], right[q]) for q in left)


def _what_must_be_shared(proof: Proof) -> None:
    """Two heads that meet at a target with different rows have no common P: (5), (6)."""
    m = sp.Symbol("m", integer=True)
    # Two keys, 0 and 1, and the target 1: the weight of key 0.
    once, twice = X / (1 + X), X**2 / (1 + X**2)
    proof.check(
        "sharpness α in one head and 2α in another: at a common target they differ for 0 < x < 1",
        equal(once - twice, X * (1 - X) / ((1 + X) * (1 + X**2))),
        equation=5,
    )
    proof.check(
        "a shift by 1/2 gives two keys equal weights; the ratio x^(2t − 1) of integers is never 1",
        identical(m**2 - (m - 1) ** 2, 2 * m - 1)
        and (sp.Rational(1, 2) ** 2 - (sp.Rational(1, 2) - 1) ** 2 == 0)
        and sp.ask(sp.Q.odd(2 * m - 1)) is True,
        equation=5,
    )
    slope, here, there, k, q, shift = sp.symbols("w X_q X_p k q Delta")
    content = [pixel * slope * (k - query) for pixel, query in ((here, q), (there, q + shift))]
    proof.check(
        "a query's own content: two keys differ in score by X_q w at q and X_p w at p",
        all(
            identical(score.subs(k, 1) - score.subs(k, 0), pixel * slope)
            for score, pixel in zip(content, (here, there), strict=True)
        ),
        equation=5,
    )
    for layer in LAYERS[:2]:
        biased = replace(layer, biased=True)
        proof.check(
            f"a score of the key alone, the same in all heads, is shared: {layer.name}",
            _same(biased.dense(), biased.factored()),
            equation=6,
        )


# One matrix for each axis -------------------------------------------------------------------------


def _one_matrix_for_each_axis(proof: Proof) -> None:
    a, b = sp.symbols("a b", real=True)
    proof.check("e^(a + b) = e^a e^b", identical(sp.exp(a + b), sp.exp(a) * sp.exp(b)), equation=7)
    e, f, y, z = sp.symbols("e f y z", positive=True)
    proof.check(
        "(e f)/(y z) = (e/y)(f/z): one more axis multiplies the weights by its own",
        equal((e * f) / (y * z), (e / y) * (f / z)),
        equation=7,
    )
    for keys, targets in (((3,), (2,)), ((2, 3), (3, 2)), ((2, 2, 2), (1, 2, 1))):
        axes = [
            sp.Matrix(m, n, lambda t, k, i=i: sp.Symbol(f"e{i}_{k - t}", positive=True))
            for i, (n, m) in enumerate(zip(keys, targets, strict=True))
        ]
        whole = sp.Matrix(
            prod(targets),
            prod(keys),
            [
                prod(axis[at] for axis, at in zip(axes, zip(t, k, strict=True), strict=True))
                for t, k in product(box(*targets), box(*keys))
            ],
        )
        sums = [axis * sp.ones(n, 1) for axis, n in zip(axes, keys, strict=True)]
        proof.check(
            f"exponentials on a box are a Kronecker product, and so are their sums: {keys} keys",
            identical(whole, sp.kronecker_product(*axes))
            and identical(whole * sp.ones(prod(keys), 1), sp.kronecker_product(*sums)),
            equation=7,
        )
        pixels = sp.Matrix(prod(keys), 1, lambda i, _: sp.Symbol(f"X_{i}"))
        proof.check(
            f"P X one axis after another: {keys} keys",
            identical(whole * pixels, _axis_by_axis(axes, pixels, keys)),
            equation=8,
        )
    _sink(proof)
    z = (sp.S.Zero, -sp.S.Half, -sp.S.Half, -sp.S.One)
    proof.check(
        "sparsemax of 0 and −1/2 is (3/4, 1/4); of their sums over two axes not its square",
        _sparsemax(z[:2], sp.Rational(-3, 4)) == (sp.Rational(3, 4), sp.Rational(1, 4))
        and _sparsemax(z, sp.Rational(-2, 3))[0] == sp.Rational(2, 3) != sp.Rational(3, 4) ** 2,
        equation=10,
    )
    rows = [row for n in (1, 2, 3) for row in product((0, -1, -2), repeat=n)]
    proof.check(
        "top-1 of the sums over two axes of up to 3 scores in {0, −1, −2}, ties sharing evenly, is "
        "the product of the axes' top-1",
        all(
            top_one([a + b for a, b in product(first, second)])
            == [a * b for a, b in product(top_one(first), top_one(second))]
            for first, second in product(rows, repeat=2)
        ),
        equation=10,
    )


def _axis_by_axis(axes: Sequence[sp.Matrix], pixels: sp.Matrix, keys: Sequence[int]) -> sp.Matrix:
    """Apply one matrix to each axis of an array in turn; arrays are row-major columns."""
    shape, values = list(keys), list(pixels)
    for i, axis in enumerate(axes):
        before, after = prod(shape[:i]), prod(shape[i + 1 :])
        n = shape[i]
        values = [
            sum(axis[t, k] * values[(lead * n + k) * after + rest] for k in range(n))
            for lead, t, rest in product(range(before), range(axis.rows), range(after))
        ]
        shape[i] = axis.rows
    return sp.Matrix(values)


def top_one(scores: Sequence[int | Fraction]) -> list[Fraction]:
    """All the attention to the highest score, shared evenly by those that tie."""
    ties = [score == max(scores) for score in scores]
    return [Fraction(tie, sum(ties)) for tie in ties]


def _sparsemax(scores: Sequence[sp.Rational], level: sp.Rational) -> tuple[sp.Rational, ...]:
    """The projection onto the simplex, given its level, which must make the weights sum to 1."""
    weights = tuple(max(score - level, sp.S.Zero) for score in scores)
    return weights if sum(weights) == 1 else ()


def _sink(proof: Proof) -> None:
    e, y, z, s = sp.symbols("e y z s", positive=True)
    kept = z / (z + s)
    proof.check(
        "a sink multiplies every weight of the row by r = Z/(Z + s)",
        equal(e / (z + s), kept * (e / z)),
        equation=9,
    )
    proof.check(
        "r = σ(ln Z − ln s)",
        equal(sp.expand(1 / (1 + sp.exp(-(sp.log(z) - sp.log(s))))), kept),
        equation=9,
    )
    proof.check(
        "ln Z is the sum over the axes of ln Z_i",
        identical(sp.expand_log(sp.log(y * z)), sp.log(y) + sp.log(z)),
        equation=9,
    )
    score, other, highest = sp.symbols("a b h", real=True)
    shifted = sp.exp(highest) * (sp.exp(score - highest) + sp.exp(other - highest))
    proof.check(
        "on an axis the highest score may be taken out of the sum",
        identical(shifted, sp.exp(score) + sp.exp(other)),
        equation=9,
    )


# What soft padding does ---------------------------------------------------------------------------


def _nothing_is_forgotten(proof: Proof) -> None:
    """Quadratic factors are Vandermonde matrices between diagonal ones: (11)."""
    k, t = sp.symbols("k t", integer=True)
    proof.check(
        "x^((k − t)²) = x^(t²) (x^(−2t))^k x^(k²)",
        identical((k - t) ** 2, t**2 - 2 * t * k + k**2),
        equation=11,
    )
    for n in (2, 3, 4):
        nodes = sp.symbols(f"y_1:{n + 1}")
        vandermonde = sp.Matrix(n, n, lambda i, j, nodes=nodes: nodes[i] ** j)
        differences = prod(nodes[j] - nodes[i] for i in range(n) for j in range(i + 1, n))
        proof.check(
            f"Vandermonde's determinant is the product of the differences of the nodes, n = {n}",
            identical(vandermonde.det(method="berkowitz"), differences),
            equation=11,
        )
    y = sp.Symbol("y", positive=True)
    proof.check(
        "x^(−2t) = y^t with y = x^(−2) > 1 rises with t, so that no two nodes are equal",
        identical(y ** (t + 1) - y**t, y**t * (y - 1)),
        equation=11,
    )


def _error(proof: Proof) -> None:
    layer, limit, matrix, bias = sp.symbols("PX P_oX W b", commutative=False)
    proof.check(
        "bias and matrices do not see what the heads did to the pixels",
        identical((bias + layer * matrix) - (bias + limit * matrix), (layer - limit) * matrix),
        equation=12,
    )
    # Relative weights: 1 of the limit, phi of the first order (times their distances B),
    # psi of the rest (times theirs, B'); |B| <= phi D and |B'| <= psi D.
    phi, psi, size = sp.symbols("phi psi D", nonnegative=True)
    near, far = sp.symbols("B B'", real=True)
    total = 1 + phi + psi
    proof.check(
        "what is left of the error after its first order B is (B' − (φ + ψ) B)/(1 + φ + ψ)",
        equal((near + far) / total - near, (far - (phi + psi) * near) / total),
        equation=13,
    )
    proof.check(
        "(ψ + (φ + ψ)φ)/(1 + φ + ψ) <= ψ + φ²: cleared, the difference is ψ² + φ³ + φ²ψ",
        identical(
            (psi + phi**2) * total - (psi + (phi + psi) * phi), psi**2 + phi**3 + phi**2 * psi
        )
        and nonnegative((psi**2 + phi**3 + phi**2 * psi) * size),
        equation=13,
    )
    j = sp.Symbol("j", integer=True, nonnegative=True)
    m = sp.Symbol("m", integer=True, positive=True)
    proof.check(
        "squares are 0, 1 or at least 4, and two that are not 0 have a sum of at least 2",
        nonnegative((2 + j) ** 2 - 4) and nonnegative((1 + j) ** 2 + (1 + m) ** 2 - 2),
        equation=14,
    )
    proof.check(
        "l steps beyond the edge the next pixel has exponent (1 + l)² − l² = 1 + 2l, at least 3",
        identical((1 + m) ** 2 - m**2, 1 + 2 * m) and nonnegative(1 + 2 * (1 + j) - 3),
        equation=14,
    )
    for shape in ((1,), (2,), (4,), (3, 2), (2, 2, 2)):
        proof.check(
            f"to first order P − P_∞ is x times the grid's Laplacian, at the border too: {shape}",
            all(
                _laplacian(t, shape)
                for t in product(
                    *(range(-2, n + 2) for n in shape[:1]), *(range(-1, n + 1) for n in shape[1:])
                )
            ),
            equation=14,
        )
    for d in (1, 2, 3):
        series = sp.Poly((1 + 2 * X + 2 * X**4) ** d - 1 - 2 * d * X, X)
        proof.check(
            f"ϑ^d − 1 − 2dx begins with 2d(d − 1) x², d = {d}",
            [series.coeff_monomial(X**i) for i in range(3)] == [0, 0, 4 * comb(d, 2)]
            and 4 * comb(d, 2) == 2 * d * (d - 1),
            equation=14,
        )


def _laplacian(target: Point, shape: Point) -> bool:
    """Whether a row is its limit plus x times the sum of differences along the grid, up to x²."""
    limit = tuple(min(max(t, 0), n - 1) for t, n in zip(target, shape, strict=True))
    distance = sum(i * i for i in minus(target, limit))
    exponents = {k: sum(i * i for i in minus(k, target)) - distance for k in box(*shape)}
    pixels = {k: sp.Symbol(f"X{k}") for k in exponents}
    inside = [t == c for t, c in zip(target, limit, strict=True)]
    neighbours = [
        k
        for k in exponents
        if sum(map(abs, minus(k, limit))) == 1
        and all(free for free, i in zip(inside, minus(k, limit), strict=True) if i)
    ]
    first = pixels[limit] + X * sum(pixels[k] - pixels[limit] for k in neighbours)
    seen = sum(X**e * pixels[k] for k, e in exponents.items())
    left = sp.Poly(seen - first * sum(X**e for e in exponents.values()), X)
    return bool(left.coeff_monomial(1) == 0 and left.coeff_monomial(X) == 0)


def _error_with_a_sink(proof: Proof) -> None:
    """The sink is one more key, of pixel 0; y = x^c: (15)."""
    y, pixel, others, mass = sp.symbols("y X N L")
    on_grid = (pixel + others) / (1 + mass + y)
    proof.check(
        "on the grid: with weight y on zero, the first order of the error is −y X",
        equal(on_grid - pixel, (others - mass * pixel - y * pixel) / (1 + mass + y))
        and sp.diff((on_grid - pixel).subs({others: 0, mass: 0}), y).subs(y, 0) == -pixel,
        equation=15,
    )
    n = sp.Symbol("n", integer=True, nonnegative=True)
    proof.check(
        "off the grid, c = 1/2: a pixel at squared distance m has weight y^(2m − 1) to the sink's "
        "1, at least y³ from m = 2 on",
        identical(sp.Rational(2) * (n - sp.Rational(1, 2)), 2 * n - 1)
        and nonnegative((2 * (2 + n) - 1) - 3),
        equation=15,
    )


# Cost ---------------------------------------------------------------------------------------------


def multiplications(keys: Sequence[int], targets: Sequence[int]) -> int:
    """How often P multiplies for each channel, one axis after another, by equation (16)."""
    return sum(prod(targets[: i + 1]) * prod(keys[i:]) for i in range(len(keys)))


def band(alpha: float | Fraction, gap: float | Fraction, spacing: int = 1) -> int:
    """The half-width of a factor, in keys, by equation (17).

    Args:
        alpha: the sharpness.
        gap: from how much below the highest score on a weight is stored as 0.
        spacing: of the keys; between keys that are more than 1 apart two may be nearest.
    """
    quotient = Fraction(gap) / Fraction(alpha)

    def below(steps: int) -> int:
        return steps**2 if spacing == 1 else spacing**2 * steps * (steps - 1)

    width = 0
    while below(width + 1) <= quotient:
        width += 1
    return width


def _cost(proof: Proof) -> None:
    for d in (1, 2, 3):
        keys, targets = sp.symbols(f"n_1:{d + 1}"), sp.symbols(f"T_1:{d + 1}")
        shape, counted = list(keys), sp.S.Zero
        for i in range(d):
            # Every entry of the result takes one multiplication for each key of its axis.
            counted += prod(shape[:i]) * targets[i] * prod(shape[i + 1 :]) * keys[i]
            shape[i] = targets[i]
        proof.check(
            f"one axis after another: the sum of T_1 ⋯ T_i n_i ⋯ n_d, d = {d}",
            identical(counted, multiplications(keys, targets)),
            equation=16,
        )
        proof.check(
            f"with as many targets as keys, T (n_1 + … + n_d), d = {d}",
            identical(multiplications(keys, keys), prod(keys) * sum(keys)),
            equation=16,
        )
    j, m, w = sp.symbols("j m w", integer=True, nonnegative=True)
    proof.check(
        "l steps beyond the edge, j pixels from it: (j + l)² − l² is at least j²",
        nonnegative((j + m) ** 2 - m**2 - j**2),
        equation=17,
    )
    proof.check(
        "a distance beyond w is at least w + 1, and its square at least (w + 1)²",
        nonnegative((w + 1 + j) ** 2 - (w + 1) ** 2),
        equation=17,
    )
    spacing = sp.Symbol("S", positive=True)
    lean = sp.Symbol("p", nonnegative=True)  # φ = p − 1/2: the target is half-way at worst
    phi = lean - sp.Rational(1, 2)
    proof.check(
        "keys S apart, the nearest φ S before the target, φ >= −1/2: j keys on it is at least "
        "S² j (j − 1) below, which grows with j",
        identical((phi + j) ** 2 * spacing**2 - phi**2 * spacing**2, spacing**2 * j * (j + 2 * phi))
        and nonnegative(spacing**2 * (j * (j + 2 * phi) - j * (j - 1)))
        and nonnegative((w + 1 + j) * (w + j) - (w + 1) * w),
        equation=17,
    )


# Gradients ----------------------------------------------------------------------------------------


def _gradients(proof: Proof) -> None:
    _adjoint(proof)
    alpha, c = sp.symbols("alpha c", real=True)
    for n in (2, 3, 4):
        scores, pixels = sp.symbols(f"s_1:{n + 1}"), sp.symbols(f"X_1:{n + 1}")
        weights = sp.symbols(f"e_1:{n + 1}", positive=True)
        keys = list(zip(weights, scores, pixels, strict=True))
        seen, score, both = (
            sum(terms) / sum(weights)
            for terms in zip(*((e * p, e * s, e * s * p) for e, s, p in keys), strict=True)
        )
        exponentials = {e: sp.exp(alpha * s) for e, s, _ in keys}
        # Back from the exponentials to symbols, in which everything is rational.
        derivative = sp.diff(seen.subs(exponentials), alpha)
        derivative = derivative.subs({power: e for e, power in exponentials.items()})
        proof.check(
            f"∂(PX)/∂α is the covariance of score and pixel under a row's weights, {n} keys",
            equal(derivative, both - score * seen),
            equation=19,
        )
        flat = {p: sp.Symbol("X") for p in pixels}
        proof.check(
            f"of equal pixels under weights of sum 1 it is 0, {n} keys",
            equal((both - score * seen).subs(flat), sp.Integer(0)),
            equation=19,
        )
    numerator, total = (sp.Function(name)(alpha) for name in ("N", "Z"))
    rate = sp.diff(numerator, alpha) / total - numerator / total * (sp.diff(total, alpha) / total)
    score = sp.Symbol("s", real=True)
    proof.check(
        "any number of keys: (N/Z)' = N'/Z − (N/Z)(Z'/Z), and each exponential gives its score",
        equal(sp.diff(numerator / total, alpha), rate)
        and identical(sp.diff(sp.exp(alpha * score), alpha), score * sp.exp(alpha * score)),
        equation=19,
    )
    first, second = (sp.Function(name)(alpha) for name in ("F", "G"))
    proof.check(
        "a product over axes changes by one factor at a time",
        identical(
            sp.diff(first * second, alpha),
            sp.diff(first, alpha) * second + first * sp.diff(second, alpha),
        ),
        equation=20,
    )
    mass = sp.Function("S")(alpha)  # of the sink, e^(−cα)
    kept = total / (total + mass)
    proof.check(
        "r' = r (1 − r)(Z'/Z + c), with e^(−cα) for the mass of the sink",
        identical(sp.diff(sp.exp(-c * alpha), alpha), -c * sp.exp(-c * alpha))
        and equal(
            sp.diff(kept, alpha).subs(sp.diff(mass, alpha), -c * mass),
            kept * (1 - kept) * (sp.diff(total, alpha) / total + c),
        ),
        equation=20,
    )
    e, far, sunk = sp.symbols("e m S", positive=True)  # a key at squared distance m, and the sink
    proof.check(
        "equal pixels, with a sink: r' X is not 0, for one key at its target r (1 − r) c X",
        equal(
            (kept * (1 - kept) * (sp.diff(total, alpha) / total + c))
            .subs(sp.diff(total, alpha), -far * e)
            .subs({total: e, mass: sunk}),
            e * sunk / (e + sunk) ** 2 * (c - far),
        )
        and positive((e * sunk / (e + sunk) ** 2 * (c - far)).subs({far: 0, c: sp.Rational(1, 2)})),
        equation=20,
    )


def _adjoint(proof: Proof) -> None:
    """The derivatives of ⟨G, conv(PX)⟩ in pixels, matrices and bias: (18)."""
    size, keys, queries, shifts = 2, range(2), range(2), (0, 1)

    def entries(name: str, rows: int) -> sp.Matrix:
        return sp.Matrix(rows, size, lambda i, j: sp.Symbol(f"{name}_{i}{j}"))

    def gradient(of: sp.Expr, at: sp.Matrix) -> sp.Matrix:
        return sp.Matrix(*at.shape, lambda i, j: sp.diff(of, at[i, j]))

    pixels = [entries(f"X{k}", 1) for k in keys]
    matrices, bias = [entries(f"W{s}", size) for s in shifts], entries("b", 1)
    given = [entries(f"G{q}", 1) for q in queries]
    rows = {q + s: sp.symbols(f"P{q + s}_0:2") for q in queries for s in shifts}
    zero = sp.zeros(1, size)
    padded = {
        t: sum((p * x for p, x in zip(row, pixels, strict=True)), zero) for t, row in rows.items()
    }
    outputs = [
        sum((padded[q + s] * w for s, w in zip(shifts, matrices, strict=True)), bias)
        for q in queries
    ]
    value = sum((g * y.T)[0] for g, y in zip(given, outputs, strict=True))
    back = {
        t: sum(
            (given[t - s] * w.T for s, w in zip(shifts, matrices, strict=True) if t - s in queries),
            zero,
        )
        for t in rows
    }
    case = "two keys, queries and taps, 2 × 2 matrices"
    proof.check(
        f"{case}: in the pixels the convolution's gradient at the targets, then P transposed",
        all(
            identical(
                gradient(value, pixels[k]), sum((row[k] * back[t] for t, row in rows.items()), zero)
            )
            for k in keys
        ),
        equation=18,
    )
    proof.check(
        f"{case}: in matrices and bias the convolution's gradients at the image PX",
        all(
            identical(
                gradient(value, w),
                sum((padded[q + s].T * given[q] for q in queries), sp.zeros(size, size)),
            )
            for s, w in zip(shifts, matrices, strict=True)
        )
        and identical(gradient(value, bias), sum(given, zero)),
        equation=18,
    )
    rest, g, p, x, w = sp.symbols("R G P X W")
    proof.check(
        "one term G P X W more adds P (G W) in X and (P X) G in W",
        identical(sp.diff(rest + g * p * x * w, x), p * (g * w))
        and identical(sp.diff(rest + g * p * x * w, w), (p * x) * g),
        equation=18,
    )


# Floating point -----------------------------------------------------------------------------------

LARGEST = 2**40
"""Most keys for which the constant of the rescaling is shown."""


@dataclass(frozen=True)
class StepError:
    """What floating point can do in one step of P, by equations (21) to (24).

    Attributes:
        weight: μ, the relative error of a weight.
        lost: z, its absolute error, by underflow.
        value: ε, the relative error of a row of weights times pixels, against P times moduli.
        strayed: y, what the row makes of the absolute errors, for pixels of size 1.
        keys: the length of the row; 0 for the factor of a sink.
    """

    weight: arb
    lost: arb
    value: arb
    strayed: arb
    keys: int


def softmax_error(name: str, keys: int, *, steps: int, score_error: arb | None = None) -> StepError:
    """One softmax over `keys` scores, one of `steps` in all, weights stored in a format.

    Args:
        name: of the format.
        keys: the length of the row.
        steps: axes, and one more with a sink; 1 for dense attention.
        score_error: bound on what the encoding's own rounding does to a score.
    """
    exact, u, cast, cast_eta = _format(name)
    tiny, eta = ball(exact.smallest_normal), ball(exact.smallest_subnormal)
    tau = _exponential(name, score_error) * (steps + 1 if steps > 1 else 1)
    summed = growth(keys, u)
    beta = tau + 2 * keys * tiny + summed
    rho = ((2 * u + cast) * (1 + 2 * u) + beta) / (1 - beta)
    weight = compounded([tau, rho])
    lost = 2 * tiny * (1 + rho) + eta + cast_eta
    strayed = keys * lost * (1 + summed)
    return StepError(weight, lost, compounded([weight, summed]), strayed, keys)


def rescaling_error(name: str, keys: Sequence[int]) -> StepError:
    """The factor r that a sink leaves of a row, by equation (24), and the product with it.

    Args:
        name: of the format that it is stored in; it is computed in float64.
        keys: on each axis.
    """
    exact, u, cast, cast_eta = _format(name)
    double = ball(FORMATS["float64"].unit_roundoff)
    together = _exponent_error(len(keys), prod(keys))
    stored = compounded([together, growth(sum(keys), double), u + cast])
    lost = 2 * ball(exact.smallest_normal) + cast_eta
    return StepError(stored, lost, compounded([stored, u]), lost, 0)


def compounded(errors: Iterable[arb]) -> arb:
    """The relative error of a chain of factors, each with its own; without cancellation."""
    total = arb(0)
    for error in errors:
        total += error + total * error
    return total


def growth(terms: int, u: arb) -> arb:
    """γ_n = (1 + u)^n − 1."""
    return (terms * u.log1p()).expm1()


def rounding_of_the_seen(name: str, steps: Sequence[StepError], seen: arb, largest: arb) -> arb:
    """N_1 of equation (23).

    Args:
        name: of the format.
        steps: the errors of all steps.
        seen: P|X|.
        largest: R.

    Raises:
        ValueError: A is not certainly at most 2.
    """
    total = compounded(step.value for step in steps)
    if not total <= 1:
        raise ValueError(f"A = {1 + total}; the bound holds up to 2")
    eta = ball(ACCUMULATOR[name].smallest_subnormal)
    lost = sum((step.strayed for step in steps), arb(0)) * largest
    underflow = sum(step.keys for step in steps) * eta
    return total * seen + arb(2) ** len(steps) * (lost + underflow)


def rounding_of_the_mass(
    name: str, keys: Sequence[int], mass: arb, largest: arb, *, rescaled: bool = False
) -> arb:
    """N_2 of equation (26).

    Args:
        name: of the format.
        keys: of each softmax.
        mass: Λ, before normalisation.
        largest: R.
        rescaled: whether there is the step of a sink.
    """
    exact, u, *_ = _format(name)
    steps = len(keys) + rescaled
    tau = _exponential(name) * (steps + 1 if steps > 1 else 1)
    computed = (1 + tau) * mass + 2 * sum(keys) * ball(exact.smallest_normal)
    stored = (1 + u) ** 2 * computed + sum(keys) * ball(exact.smallest_subnormal)
    once = 24 * (1 + growth(max(keys), u)) * stored
    return compounded([once] * steps) * largest


def soft_padding_row(axes: Sequence[Sequence[arb]], sink: arb | None = None) -> list[arb]:
    """A row of P by definition: the softmax over all keys of a box at once, and the sink.

    Args:
        axes: the scores of the target on each axis.
        sink: its score, or None without a sink.

    Returns:
        The weights of the keys, row-major, as balls.
    """
    exponentials = [sum(scores, arb(0)).exp() for scores in product(*axes)]
    total = sum(exponentials, arb(0) if sink is None else sink.exp())
    return [e / total for e in exponentials]


def _format(name: str) -> tuple[Format, arb, arb, arb]:
    """Accumulator, its unit roundoff, and those of the cast: unit roundoff, smallest subnormal."""
    of, exact = FORMATS[name], ACCUMULATOR[name]
    if of == exact:
        return exact, ball(exact.unit_roundoff), arb(0), arb(0)
    return exact, ball(exact.unit_roundoff), ball(of.unit_roundoff), ball(of.smallest_subnormal)


def _lowest(exact: Format) -> arb:
    """S = 1 − ln ν: a score below −S has an exponential below 2ν."""
    return 1 - ball(exact.smallest_normal).log()


def _exponential(name: str, score_error: arb | None = None) -> arb:
    """τ of T7, with the encoding's own error."""
    exact, u, *_ = _format(name)
    own = (EXP_ROUNDOFFS + 2 * _lowest(exact)) * u * ball(1 + Fraction(1, 2**12))
    return own if score_error is None else compounded([own, score_error.expm1()])


def _exponent_error(axes: int, keys: int) -> arb:
    """What the error of ln Z − ln s, that of the sums in Z left out, and of σ make of r.

    It is a sum of terms that grow with the logarithm of the number of keys on all axes together.
    """
    lowest, log = _lowest(FORMATS["float64"]), ball(keys).log()
    reach = 2 * (lowest + log)  # J
    on_axes = axes * EXP_ROUNDOFFS + 2 * log + 4 * log
    roundoffs = (axes + 1) * reach + axes * log + lowest + on_axes + EXP_ROUNDOFFS + 2
    return roundoffs * ball(FORMATS["float64"].unit_roundoff) * ball(1 + Fraction(1, 2**12))


def _relative_rounding(proof: Proof) -> None:
    """Errors relative to P|X|: (21) to (23)."""
    a, b, g, u, c = sp.symbols("a b g u c", nonnegative=True)
    proof.check(
        "a computed sum is at least (1 − a)(1 − g) >= 1 − (a + g) times the exact one",
        identical((1 - a) * (1 - g) - (1 - (a + g)), a * g),
        equation=21,
    )
    proof.check(
        "dividing: (1 + a)/(1 − b) − 1 = (a + b)/(1 − b), and (1 − a)(1 − b) is less far from 1",
        equal((1 + a) / (1 - b) - 1, (a + b) / (1 - b))
        and equal((a + b) / (1 - b) - (1 - (1 - a) * (1 - b)), (a + b) * b / (1 - b) + a * b),
        equation=21,
    )
    proof.check(
        "two roundings and a cast: (1 + u)²(1 + c) − 1 <= (2u + c)(1 + 2u) for c <= 1",
        identical((2 * u + c) * (1 + 2 * u) - ((1 + u) ** 2 * (1 + c) - 1), u**2 * (3 - c)),
        equation=21,
    )
    weight, lost, seen = sp.symbols("mu z a_k", nonnegative=True)
    proof.check(
        "errors of a weight and γ times its size: (1 + μ)(1 + γ) − 1 relative, z (1 + γ) absolute",
        identical(
            weight * seen + lost + g * ((1 + weight) * seen + lost),
            ((1 + weight) * (1 + g) - 1) * seen + lost * (1 + g),
        ),
        equation=22,
    )
    terms, eta, room = sp.symbols("n eta p", nonnegative=True)
    proof.check(
        "n products lose η/2 each, and sums make 1 + γ of that: n η at most, for γ = 1 − p <= 1",
        identical(terms * eta - terms * eta / 2 * (1 + (1 - room)), terms * eta * room / 2)
        and nonnegative(terms * eta * room / 2),
        equation=22,
    )
    before, step, absolute, fresh, size = sp.symbols("A e U l R", nonnegative=True)
    moduli, underflow = sp.symbols("V w", nonnegative=True)
    # The error before is at most (A − 1) V + U, the values at most V <= R before it.
    carried = (before - 1) * moduli + absolute
    stepped = carried + step * (moduli + carried) + fresh * (before * size + absolute) + underflow
    after, total = before * (1 + step), (1 + step + fresh) * absolute + fresh * before * size
    proof.check(
        "one step: A becomes A (1 + ε), and U becomes (1 + ε + y) U + y A R + w",
        identical(stepped, (after - 1) * moduli + total + underflow),
        equation=23,
    )
    proof.check(
        "1 + ε + y <= (1 + ε)(1 + y)",
        nonnegative((1 + step) * (1 + fresh) - (1 + step + fresh)),
        equation=23,
    )
    for name in FORMATS:
        proof.check(
            f"{name}: if A <= 2, then A times the product of all 1 + y is below 7/2 = 2² − 1/2",
            bool(2 * _lost_growth(name, arb(2)) < ball(Fraction(7, 2))),
            equation=23,
        )
        proof.check(
            f"{name}: if A <= 9/8, it is below 5/4",
            bool(
                ball(Fraction(9, 8)) * _lost_growth(name, ball(Fraction(9, 8)))
                < ball(Fraction(5, 4))
            ),
            equation=27,
        )


def _lost_growth(name: str, relative: arb) -> arb:
    """Bound on the product of all 1 + y, y = n z (1 + γ_n), where A is at most `relative`.

    A holds γ twice, in the weights and in the sum, so that (1 + u)^(2N) <= A, N the sum of all n.
    """
    exact, u, _, cast_eta = _format(name)
    terms = relative.log() / (2 * (1 + u).log())
    lost = 4 * ball(exact.smallest_normal) + ball(exact.smallest_subnormal) + cast_eta
    return (terms * lost * relative.sqrt()).exp()


def _rescaling(proof: Proof) -> None:
    """The factor that a sink leaves, computed from logarithms: (24)."""
    p, n, low, log = sp.symbols("p n S L", positive=True)
    proof.check(
        "y − 1 − ln y is 0 at 1, its derivative is 1 − 1/y, and the second one is positive",
        sp.diff(p - 1 - sp.log(p), p) == 1 - 1 / p
        and sp.diff(p - 1 - sp.log(p), p, 2).is_positive is True
        and (p - 1 - sp.log(p)).subs(p, 1) == 0,
        equation=24,
    )
    proof.check(
        "p (1/(n p) − 1) = 1/n − p, whose sum over n weights of sum 1 is 0",
        identical(p * (1 / (n * p) - 1), 1 / n - p),
        equation=24,
    )
    far, more = sp.symbols("H d", nonnegative=True)  # H = Σ|h|; the sink is d more than H/2 below
    proof.check(
        "ζ = L − H + H/2 − d gives 2(ζ + S) = 2(S + L) − H − 2d",
        identical(2 * ((-far + log + (far / 2 - more)) + low), 2 * (low + log) - far - 2 * more),
        equation=24,
    )
    z, delta = sp.symbols("z delta", real=True)
    proof.check(
        "1 + e^δ e^(−z) less 1 + e^(−z) is (e^δ − 1) e^(−z), and less than e^δ (1 + e^(−z)) by "
        "e^δ − 1",
        identical(
            (1 + sp.exp(delta) * sp.exp(-z)) - (1 + sp.exp(-z)), (sp.exp(delta) - 1) * sp.exp(-z)
        )
        and identical(
            sp.exp(delta) * (1 + sp.exp(-z)) - (1 + sp.exp(delta) * sp.exp(-z)),
            sp.exp(delta) - 1,
        ),
        equation=24,
    )
    for d in (1, 2, 3):
        for name in FORMATS:
            _, u, cast, _ = _format(name)
            needed = compounded([_exponent_error(d, LARGEST), u + cast, u])
            proof.check(
                f"{name}, d = {d}, 2^40 keys: the listed roundings, those of the sums apart, are "
                "within (1 + (d + 2)τ)(1 + 8u + u_w)",
                bool(needed < compounded([(d + 2) * _exponential(name), 8 * u + cast])),
                equation=24,
            )


def _rounding_by_mass(proof: Proof) -> None:
    """Errors relative to the mass off the limit, and gradients: (25) to (28)."""
    a, b, g, h, u = sp.symbols("a b g h u", nonnegative=True)
    proof.check(
        "two numbers on one side of 0, one larger by p: their distance p is at most the larger",
        nonnegative((b + a) - ((b + a) - b)) and identical((b + a) - b, a),
        equation=25,
    )
    value, rounded, own = sp.symbols("y f g_0", real=True)
    proof.check(
        "f − g = (f − y) + (y − g): within twice |y − g| if f is as near to y as g is",
        identical((rounded - value) + (value - own), rounded - own),
        equation=25,
    )
    mass, stored = sp.symbols("lambda mu", nonnegative=True)
    total = 2 * (1 + g) * mass  # the computed sum of exponentials, less 1
    peak = 2 * 2 * 2 * total  # division, cast and product each at most double the distance from 1
    others = 2 * 2 * stored * (1 + g)  # cast and product; partial sums of them
    more = sp.Symbol("r", nonnegative=True)
    proof.check(
        "1/(1 + s) >= 1 − s: the product with 1 + s is 1 − s²",
        identical((1 + mass) * (1 - mass), 1 - mass**2),
        equation=25,
    )
    proof.check(
        "16 (1 + γ)λ + 4 (1 + γ)λ' + 4 (1 + γ)λ' is at most 24 (1 + γ)λ', for λ' = λ + r",
        identical(
            24 * (1 + g) * (mass + more) - (peak + 2 * others).subs(stored, mass + more),
            16 * (1 + g) * more,
        )
        and nonnegative(16 * (1 + g) * more),
        equation=25,
    )
    c, before = sp.symbols("c C", nonnegative=True)
    proof.check(
        "one more step, c of the largest value C: C − 1 + c C = C (1 + c) − 1",
        identical((before - 1) + c * before, before * (1 + c) - 1),
        equation=26,
    )
    x = sp.Symbol("x", nonnegative=True)
    proof.check(
        "doubled four times, 3λ/2 is 24 λ",
        identical(2**4 * (sp.Rational(3, 2) * mass), 24 * mass),
        equation=26,
    )
    for d in (1, 2, 3):
        bernoulli = sp.expand((1 + 24 * x) ** (d + 1) - 1 - 24 * (d + 1) * x)
        proof.check(
            f"a row whose limit is the sink: 2 · 4λ' · 2^d (5/4) + λ' <= 24 (d + 1)λ', d = {d}",
            nonnegative(bernoulli) and 2 * 4 * 2**d * Fraction(5, 4) + 1 <= 24 * (d + 1),
            equation=27,
        )
    p, q = sp.symbols("p q", nonnegative=True)
    proof.check(
        "a product of two numbers with errors g and h: at most (1 + g)(1 + h)(1 + u) − 1",
        nonnegative(((1 + g + p) * (1 + h + q) * (1 + u) - 1) - ((1 + g) * (1 + h) * (1 + u) - 1))
        and identical((1 + g) * (1 + h) - 1, g + h + g * h),
        equation=28,
    )
    proof.check(
        "a sum of two numbers with an error of g relative to their moduli, rounded",
        identical(g * (a + b) + u * (1 + g) * (a + b), ((1 + g) * (1 + u) - 1) * (a + b)),
        equation=28,
    )
