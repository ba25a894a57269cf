"""T11. Head dimension is block-term rank.

The decomposition is that of De Lathauwer (SIAM J. Matrix Anal. Appl. 30(3), 2008), here with one
nonnegative factor. The page `docs/theorems/head_dimension_is_block_term_rank.md` numbers the
equations.

Ranks are exact, over the rationals.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import sympy as sp

from theory.depth_buys_heads import factored, multiplied, rank, reshaped
from theory.tools.proof import Proof, Step, Theorem, equal, identical, positive

__all__ = ["THEOREM", "dimension", "jacobian_rank", "one_hot_heads", "prove", "unfoldings"]

Matrix = list[list[Fraction]]

THEOREM = Theorem(
    slug="head_dimension_is_block_term_rank",
    number="T11",
    source="",
    title="Head dimension is block-term rank",
    gist="a tap of rank ρ takes ⌈ρ / D_h⌉ one-hot heads, and mixing heads have bounds",
    claim=(
        "Heads of dimension D_h that look at one tap each can express a kernel if and only if "
        "every tap has at least ⌈rank W_δ / D_h⌉ of them, and a layer of positional heads is a "
        "sum of block terms whose number is at least the rank of each unfolding over what one term "
        "has of it. "
        "Heads that are one-hot to within ε can be fewer only if the norms of their matrices add "
        "up to the smallest singular value of a tap over ε; without such a bound two heads come as "
        "near as one likes to a kernel that takes three. With all logits finite, R signed terms "
        "become R + ⌈min(D_in, D_out) / D_h⌉ heads. Almost every kernel of N taps needs N D_in "
        "D_out / (N − 1 + D_h (D_in + D_out − D_h)) heads, even approximately. Where the heads' "
        "channels are independent and no two look alike, they are the only ones, but for their "
        "order and a factor each, and can be read off the kernel."
    ),
    hypotheses=(
        "weights depend on positions alone and are nonnegative; some query has all taps on "
        "distinct keys",
        "upper bound: explicit keys or a circle, where every query sees all taps",
        "identification: H D_h channels of the values and of the outputs are independent, and the "
        "number of heads is not raised",
    ),
    notation={
        "D_in, D_out, D_h": "channels, and the dimension of a head",
        "W_δ, N": "the taps' matrices, and their number",
        "a_h, V_h": "weights of head h on the taps, and W_val^h W_out^h, of rank at most D_h",
        "r, r_in, r_out": "ranks of the unfoldings: taps, inputs, outputs by the rest",
        "ε, σ": "the largest weight of a head beside its tap; the smallest singular value of a tap",
        "U_h, Z_h, p, q": "factors of V_h; two mixtures of the taps",
    },
    proof_idea=(
        "A head is a vector of weights times a matrix of rank D_h. What a sum of such terms "
        "spans is bounded by what each spans; heads of one tap leave each tap to itself. The "
        "quotient of two mixtures of the taps has the heads' channels for eigenspaces."
    ),
    references=("arXiv:1808.02423", "arXiv:1410.7220"),
    objects=(
        "constructions.attention_from_conv",
        "constructions.heads.count",
        "constructions.heads.narrow_count",
        "constructions.heads.identify",
    ),
)

# Exact kernels ------------------------------------------------------------------------------------

Kernel = Sequence[Matrix]
"""The matrices of the taps."""


def one_hot_heads(kernel: Kernel, head_dim: int) -> int:
    """Equation (2): Σ ⌈rank W_δ / D_h⌉."""
    return sum(-(-rank(matrix) // head_dim) for matrix in kernel)


def unfoldings(kernel: Kernel) -> tuple[int, int, int]:
    """r, r_in and r_out."""
    flat = [[v for row in matrix for v in row] for matrix in kernel]
    inputs = [[v for matrix in kernel for v in matrix[i]] for i in range(len(kernel[0]))]
    outputs = [[row[j] for matrix in kernel for row in matrix] for j in range(len(kernel[0][0]))]
    return rank(flat), rank(inputs), rank(outputs)


def dimension(taps: int, inputs: int, outputs: int, head_dim: int) -> int:
    """Equation (6): the parameters of one head, N - 1 + D_h (D_in + D_out - D_h)."""
    return taps - 1 + head_dim * (inputs + outputs - head_dim)


def jacobian_rank(weights: Matrix, values: Sequence[Matrix], outputs: Sequence[Matrix]) -> int:
    """The rank of the derivative of Σ a_h U_h Z_h by all its entries.

    Args:
        weights: a, (H, N).
        values: U_h, D_in x D_h.
        outputs: Z_h, D_h x D_out.
    """
    taps = range(len(weights[0]))
    rows = []
    for a, u, z in zip(weights, values, outputs, strict=True):
        whole = multiplied(u, z)
        size = len(u), len(z), len(z[0])
        none = [[Fraction(0)] * size[2] for _ in range(size[0])]

        def put(own: Sequence[Fraction], matrix: Matrix) -> list[Fraction]:
            return [factor * v for factor in own for row in matrix for v in row]

        for tap in taps:
            rows.append(put([Fraction(int(tap == t)) for t in taps], whole))
        for i, k in product(range(size[0]), range(size[1])):
            rows.append(put(a, [z[k] if row == i else none[0] for row in range(size[0])]))
        for k, j in product(range(size[1]), range(size[2])):
            moved = [
                [u[row][k] if column == j else Fraction(0) for column in range(size[2])]
                for row in range(size[0])
            ]
            rows.append(put(a, moved))
    return rank(rows)


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Prove T11: equations (1) to (8) of its page."""
    proof = Proof()
    _prove_lower_bounds(proof)
    _prove_one_hot(proof)
    _prove_nearly_one_hot(proof)
    _prove_upper_bound(proof)
    _prove_dimension(proof)
    _prove_identification(proof)
    _prove_certificate(proof)
    return proof.steps


def _prove_lower_bounds(proof: Proof) -> None:
    """Unfoldings: (1)."""
    a = sp.Matrix(2, 2, sp.symbols("a:4"))
    u = [sp.Matrix(3, 1, sp.symbols(f"u{h}_:3")) for h in range(2)]
    z = [sp.Matrix(1, 3, sp.symbols(f"z{h}_:3")) for h in range(2)]
    taps = [sum((a[h, t] * u[h] * z[h] for h in range(2)), sp.zeros(3, 3)) for t in range(2)]
    beside, below = sp.Matrix.hstack(*taps), sp.Matrix.vstack(*taps)
    chosen = [(0, 1, 2), (0, 1, 4), (0, 4, 5)]
    proof.check(
        "two heads of dimension one, two taps, three channels: minors of size three of both "
        "unfoldings are zero, all symbolic",
        all(
            identical(beside.extract([0, 1, 2], list(columns)).det(method="berkowitz"), 0)
            and identical(below.extract(list(columns), [0, 1, 2]).det(method="berkowitz"), 0)
            for columns in chosen
        ),
        equation=1,
    )
    one = sp.Matrix([[a[0, t] * v for v in u[0] * z[0]] for t in range(2)])
    proof.check(
        "one head: minors of size two of taps by the rest are zero",
        all(
            identical(one.extract([0, 1], [i, j]).det(), 0) for i, j in product(range(9), repeat=2)
        ),
        equation=1,
    )


def _prove_one_hot(proof: Proof) -> None:
    """A tap of rank ρ has ⌈ρ / D_h⌉ heads: (2)."""
    proof.check(
        "⌈ρ / D⌉ is the least number of heads whose dimensions add up to ρ, ρ and D up to 40",
        all(
            min(k for k in range(rho + 1) if k * d >= rho) == -(-rho // d)
            for rho, d in product(range(41), range(1, 41))
        ),
        equation=2,
    )
    found = True
    for values in product(map(Fraction, (-1, 0, 1)), repeat=6):
        matrix = reshaped(list(values), 2)
        first, second = factored(matrix)
        terms = [multiplied([[row[k]] for row in first], [second[k]]) for k in range(len(second))]
        total = [
            [sum((term[i][j] for term in terms), Fraction(0)) for j in range(3)] for i in range(2)
        ]
        found &= total == matrix and len(terms) == rank(matrix)
    proof.check(
        "every 2 x 3 matrix with entries -1, 0, 1: a sum of as many heads of dimension one as its "
        "rank",
        found,
        equation=2,
    )


def _prove_nearly_one_hot(proof: Proof) -> None:
    """The floor with a bound on the matrices, and the kernel without: (3) and (4)."""
    w, own, others = (sp.Symbol(name, commutative=False) for name in ("W", "O", "R"))
    proof.check(
        "a tap less its own heads is its error plus what the others add",
        identical(w - own, (w - (own + others)) + others),
        equation=3,
    )
    t = sp.Symbol("t", positive=True)
    x, y = (sp.Matrix(2, 1, sp.symbols(f"{name}:2", real=True)) for name in "xy")
    taps = x * x.T, x * y.T + y * x.T
    first, second = (x + t * y) * (x + t * y).T / t, -x * x.T / t
    small = 2 * t * first + t * second
    large = first + second
    proof.check(
        "weights (2t, 1) and (t, 1), matrices (x + ty)(x + ty)^T / t and -x x^T / t: the taps are "
        "missed by 2t W_1 + 2t^2 y y^T and by t y y^T",
        _is_zero(small - taps[0] - 2 * t * taps[1] - 2 * t**2 * y * y.T)
        and _is_zero(large - taps[1] - t * y * y.T),
        equation=4,
    )
    wedge = x[0] * y[1] - x[1] * y[0]
    proof.check(
        "of ranks 1 and 2 where x and y are independent: the second determinant is minus a square",
        identical(taps[0].det(), 0) and identical(taps[1].det(), -(wedge**2)),
        equation=4,
    )
    proof.check(
        "the second head's weight beside its tap, t, times its norm is |x|^2, whatever t is",
        equal(t * (x.dot(x) / t), x.dot(x)),
        equation=4,
    )


def _is_zero(matrix: sp.Matrix) -> bool:
    return all(equal(entry, sp.Integer(0)) for entry in matrix)


def _prove_upper_bound(proof: Proof) -> None:
    """Signed terms become positive ones and one matrix more: (5)."""
    shift = sp.Symbol("t", positive=True)
    b = sp.symbols("b:2", real=True)
    v = [sp.Symbol(f"V{h}", commutative=False) for h in range(2)]
    mean = -shift * sum(v)
    proof.check(
        "two signed terms: the shifted ones and -t Σ V are the tap; beyond the kernel nothing",
        identical(
            sum((c + shift) * m for c, m in zip(b, v, strict=True)) + mean,
            b[0] * v[0] + b[1] * v[1],
        )
        and identical(sum(shift * m for m in v) + mean, 0),
        equation=5,
    )
    size, slack = sp.Symbol("b", nonnegative=True), sp.Symbol("s", positive=True)
    proof.check(
        "with t above every |b| all weights are positive",
        positive(-size + (size + slack)) and positive(size + (size + slack)),
        equation=5,
    )
    keys = sp.Symbol("n", positive=True)
    proof.check(
        "a row sums to n t + Σ b at every query: dividing by it is a factor of the matrix",
        identical(keys * shift + sum(b) - ((keys - 2) * shift + sum(c + shift for c in b)), 0),
        equation=5,
    )


def _prove_dimension(proof: Proof) -> None:
    """Parameters: (6)."""
    i, o, d, n = sp.symbols("i o d n", positive=True)
    proof.check(
        "U and Z less the invertible maps between them, the weights less a factor",
        identical(i * d + d * o - d**2 + (n - 1), n - 1 + d * (i + o - d)),
        equation=6,
    )
    proof.check(
        "with D_h = D_in a matrix is free: D_in D_out",
        identical((d * (i + o - d)).subs(d, i), i * o),
        equation=6,
    )
    cases = [(2, 2, 2, 1, 1), (3, 2, 2, 1, 2), (3, 3, 3, 1, 2), (2, 3, 4, 2, 1), (4, 3, 3, 2, 2)]
    for taps, inputs, outputs, head_dim, heads in cases:
        found = jacobian_rank(*_generic(taps, inputs, outputs, head_dim, heads))
        most = heads * dimension(taps, inputs, outputs, head_dim)
        proof.check(
            f"{heads} heads of dimension {head_dim}, {taps} taps, {inputs} to {outputs} channels: "
            f"the derivative has rank {found}, the smaller of the count and the kernel's entries",
            found == min(most, taps * inputs * outputs),
            equation=6,
        )


def _generic(
    taps: int, inputs: int, outputs: int, head_dim: int, heads: int
) -> tuple[Matrix, list[Matrix], list[Matrix]]:
    """Weights and factors of integers without a pattern."""
    state = 1

    def matrix(rows: int, columns: int) -> Matrix:
        nonlocal state
        numbers = []
        for _ in range(rows * columns):
            state = (state * 48271) % 2147483647
            numbers.append(Fraction(state % 19 - 9))
        return reshaped(numbers, rows)

    weights = [[abs(v) + 1 for v in row] for row in matrix(heads, taps)]
    values = [matrix(inputs, head_dim) for _ in range(heads)]
    return weights, values, [matrix(head_dim, outputs) for _ in range(heads)]


def _prove_identification(proof: Proof) -> None:
    """The quotient of two mixtures: (7)."""
    u = sp.Matrix(2, 2, sp.symbols("u:4"))
    z = sp.Matrix(2, 2, sp.symbols("z:4"))
    p, q = (sp.diag(*sp.symbols(f"{name}:2")) for name in "pq")
    below, above = u * p * z, u * q * z
    # Q = U q p^-1 U^-1, and p, q commute: Q below = above; without fractions.
    quotient = u * q * p.adjugate() * u.adjugate()
    scale = p.det() * u.det()
    proof.check(
        "two heads of dimension one, all symbolic: the quotient of mixtures is U (q / p) U^-1",
        identical(quotient * below, scale * above),
        equation=7,
    )
    proof.check(
        "so that a head's channels are eigenvectors, with the quotient of its mixtures",
        all(
            identical(
                quotient * u[:, h],
                u.det() * q[h, h] * p.adjugate()[h, h] * u[:, h],
            )
            for h in range(2)
        ),
        equation=7,
    )
    a, b = (sp.Matrix(1, 3, sp.symbols(f"{name}:3")) for name in "ab")
    mix, other = (sp.Matrix(3, 1, sp.symbols(f"{name}:3")) for name in "pq")
    between = (a * other)[0] * (b * mix)[0] - (b * other)[0] * (a * mix)[0]
    minors = [
        (a[i] * b[j] - a[j] * b[i]) * (other[i] * mix[j] - other[j] * mix[i])
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    proof.check(
        "two quotients differ by Σ (a_i b_j - a_j b_i)(q_i p_j - q_j p_i): zero for all mixtures "
        "only if a and b are proportional",
        identical(between, sum(minors)),
        equation=7,
    )


def _prove_certificate(proof: Proof) -> None:
    """What the stored factors miss: (8)."""
    s = [sp.Symbol(f"s{t}", commutative=False) for t in range(2)]
    m = [sp.Symbol(f"M{h}", commutative=False) for h in range(3)]
    w = [sp.Symbol(f"W{t}", commutative=False) for t in range(2)]
    layer = s[0] * m[0] + s[0] * m[1] + s[1] * m[2]
    proof.check(
        "two heads at one tap, one at another: the layer less the convolution is Σ s (Σ M - W)",
        identical(
            layer - (s[0] * w[0] + s[1] * w[1]),
            s[0] * (m[0] + m[1] - w[0]) + s[1] * (m[2] - w[1]),
        ),
        equation=8,
    )
