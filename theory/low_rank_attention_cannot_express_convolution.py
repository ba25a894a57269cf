"""T15. Low-rank attention cannot express convolution.

New here, but for the classical inequalities; the nearest relative is arXiv 2512.15115. The page
`docs/theorems/low_rank_attention_cannot_express_convolution.md` numbers the equations.

Ranks and kernels of matrices are exact, over the rationals.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod

import sympy as sp
from flint import fmpq, fmpq_mat, fmpz_mat

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative

__all__ = [
    "THEOREM",
    "convolution_matrix",
    "invisible_image",
    "normalised_heads",
    "prove",
    "rank",
    "shift_matrix",
    "shift_rank",
]

Matrix = list[list[Fraction]]

THEOREM = Theorem(
    slug="low_rank_attention_cannot_express_convolution",
    number="T15",
    source="",
    title="Low-rank attention cannot express convolution",
    gist="one rank too few is worth nothing",
    claim=(
        "If the weights of every head are inner products of m features, N_h heads shift an image "
        "only if N_h m is at least the number of pixels that the shift moves, and with fewer no "
        "layer errs less than a constant does. "
        "On a box with zero padding that number is the product of n_i − |Δ_i|, on a torus or with "
        "padded keys the number of queries; where rows sum to one, N_h (m − 1) + 1 has to reach "
        "it. The first count suffices; the second on a torus and with padded keys. "
        "With padded keys every kernel but 0 needs as many. In Euclidean "
        "norm a missing rank costs a whole unit, and on a torus the best error is the next largest "
        "|Ŵ|. Content does not help: near the zero image the layer is linear. Softmax attention is "
        "not of low rank: on a line two features in the scores suffice."
    ),
    hypotheses=(
        "the weights of head h are a^h_qk = <φ_q, ψ_k>/z_q, with m features φ, ψ (linear and "
        "kernel attention), or factor through m rows (projected keys and values)",
        "positional weights; or content too, with weights that are continuous at the zero image",
        "images have values in [0, 1], or Euclidean norm at most 1 where it is said",
        "one input and one output channel, or the pair of channels in question",
    ),
    notation={
        "m, N_h": "features of a head, and number of heads",
        "A^h, M": "the weights of a head, and the layer Σ_h c_h A^h, for one channel",
        "S_Δ": "the matrix of the shift by Δ: 1 at (q, q + Δ) where that is a key",
        "C": "the matrix of a convolution, queries by keys",
        "r, N": "rank of the layer, and rank of the target",
        "Z": "an image that the layer does not see: M Z = 0",
        "Ŵ": "the discrete Fourier transform of a kernel on the torus",
    },
    proof_idea=(
        "Ranks add up over heads. A layer of smaller rank than the number N of pixels that are "
        "moved maps some image on these pixels to zero, and grey plus or minus half of it are two "
        "images with one output, while the shift tells them apart as far as images can be."
    ),
    references=("arXiv:2006.16236", "arXiv:2006.04768", "arXiv:2512.15115"),
    objects=("constructions.normalisers.IMPOSSIBLE_NORMALISERS",),
)

# Exact matrices -----------------------------------------------------------------------------------


def convolution_matrix(
    kernel: Mapping[tuple[int, ...], Fraction],
    shape: Sequence[int],
    *,
    queries: Sequence[Sequence[int]] | None = None,
    torus: bool = False,
) -> Matrix:
    """C for a kernel {offset: weight}: one row for each query, by default every key is one.

    A tap beyond the box meets zero, or on a torus comes round.
    """
    keys = list(product(*map(range, shape)))
    place = {key: index for index, key in enumerate(keys)}
    rows = []
    for query in keys if queries is None else queries:
        row = [Fraction(0)] * len(keys)
        for offset, weight in kernel.items():
            met = tuple(q + o for q, o in zip(query, offset, strict=True))
            if torus:
                met = tuple(k % n for k, n in zip(met, shape, strict=True))
            if met in place:
                row[place[met]] += weight
        rows.append(row)
    return rows


def shift_matrix(shift: Sequence[int], shape: Sequence[int], *, torus: bool = False) -> Matrix:
    """S_Δ on a box with zero padding, or on a torus."""
    return convolution_matrix({tuple(shift): Fraction(1)}, shape, torus=torus)


def shift_rank(shift: Sequence[int], shape: Sequence[int]) -> int:
    """Equation (4): the product of n_i - |Δ_i|, or 0."""
    return prod(max(n - abs(s), 0) for s, n in zip(shift, shape, strict=True))


def _flint(matrix: Matrix) -> fmpq_mat:
    return fmpq_mat([[fmpq(v.numerator, v.denominator) for v in row] for row in matrix])


def rank(matrix: Matrix) -> int:
    """The rank over the rationals."""
    return int(_flint(matrix).rank())


def invisible_image(matrix: Matrix, pixels: Sequence[int]) -> list[Fraction] | None:
    """Equation (5): Z with M Z = 0, supported on the given pixels, max |Z| = 1; None if only 0."""
    reduced, found = _flint([[row[k] for k in pixels] for row in matrix]).rref()
    pivots = [next(j for j in range(len(pixels)) if reduced[i, j] != 0) for i in range(found)]
    free = next((j for j in range(len(pixels)) if j not in pivots), None)
    if free is None:
        return None
    image = [Fraction(0)] * len(matrix[0])
    image[pixels[free]] = Fraction(1)
    for i, j in enumerate(pivots):
        image[pixels[j]] = -Fraction(int(reduced[i, free].p), int(reduced[i, free].q))
    largest = max(map(abs, image))
    return [v / largest for v in image]


def normalised_heads(size: int, heads: int, features: int) -> list[Matrix]:
    """Equation (8): matrices of rank m and row sums 1 whose mean is the identity.

    Head h keeps the mean of all pixels, and N_h times what its own m - 1 directions see.

    Raises:
        ValueError: N_h (m - 1) + 1 is not the size.
    """
    if heads * (features - 1) + 1 != size:
        raise ValueError(f"{heads} heads of {features} features do not fit {size} pixels")
    mean = [[Fraction(1, size)] * size for _ in range(size)]
    found = []
    for h in range(heads):
        own = range(1 + h * (features - 1), 1 + (h + 1) * (features - 1))
        # P_i X = (X_i - mean) (e_i - e_0) for i in own: with the mean they add up to the identity.
        matrix = [row[:] for row in mean]
        for i in own:
            for k in range(size):
                seen = heads * (Fraction(int(k == i)) - Fraction(1, size))
                matrix[i][k] += seen
                matrix[0][k] -= seen
        found.append(matrix)
    return found


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Prove T15, low rank: equations (1) to (15) of its page."""
    proof = Proof()
    _prove_ranks(proof)
    _prove_floor(proof)
    _prove_attained(proof)
    _prove_kernels(proof)
    _prove_content(proof)
    _prove_softmax(proof)
    return proof.steps


def _prove_ranks(proof: Proof) -> None:
    """Heads have rank m, ranks add, shifts have the rank of what they move: (1) to (4)."""
    features = sp.MatrixSymbol("Φ", 3, 2), sp.MatrixSymbol("Ψ", 4, 2)
    left, right = (sp.Matrix(f) for f in features)
    weights = left * right.T
    minors = (
        weights.extract(list(rows), list(columns)).det(method="berkowitz")
        for rows, columns in product([(0, 1, 2)], [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)])
    )
    proof.check(
        "two features: every minor of size three is zero, features symbolic",
        all(identical(minor, 0) for minor in minors),
        equation=1,
    )
    z = sp.symbols("z:3", positive=True)
    scaled = sp.Matrix(3, 3, lambda i, j: weights[i, j] / z[i])
    proof.check(
        "dividing each row by its normaliser divides the minor by their product",
        equal(scaled.det(method="berkowitz"), 0),
        equation=1,
    )
    one = [[Fraction(1), Fraction(0)], [Fraction(0), Fraction(0)]]
    other = [[Fraction(0), Fraction(0)], [Fraction(0), Fraction(1)]]
    first, second = (sp.Matrix(3, 2, sp.symbols(f"{name}:6")) for name in "fg")
    third, fourth = (sp.Matrix(4, 2, sp.symbols(f"{name}:8")) for name in "uv")
    proof.check(
        "the sum of two heads of two features is one head of all four, features symbolic",
        identical(
            first * third.T + second * fourth.T,
            sp.Matrix.hstack(first, second) * sp.Matrix.hstack(third, fourth).T,
        ),
        equation=2,
    )
    value, output = sp.Matrix(2, 1, sp.symbols("V:2")), sp.Matrix(1, 2, sp.symbols("O:2"))
    kron = sp.kronecker_product
    proof.check(
        "with D_h = 1 a head of two features on two channels is a product through 2 D_h columns",
        identical(
            kron(first * third.T, value * output), kron(first, value) * kron(third.T, output)
        ),
        equation=2,
    )
    proof.check(
        "two matrices of rank 1 with a sum of rank 2",
        rank([[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)])
        == rank(one) + rank(other),
        equation=2,
    )
    heads, m = sp.symbols("H m", integer=True, positive=True)
    proof.check(
        "m - 1 dimensions more than N_h (m - 1) + 1 are those of one more head",
        identical((heads * (m - 1) + 1) + (m - 1), (heads + 1) * (m - 1) + 1),
        equation=3,
    )
    for shape in ((4,), (3, 4), (2, 3, 2)):
        shifts = product(*(range(-n, n + 1) for n in shape))
        proof.check(
            f"every shift of the box {shape}: rank n_i - |Δ_i|, multiplied; all pixels on a torus",
            all(
                rank(shift_matrix(s, shape)) == shift_rank(s, shape)
                and rank(shift_matrix(s, shape, torus=True)) == prod(shape)
                for s in shifts
            ),
            equation=4,
        )


def _prove_floor(proof: Proof) -> None:
    """An image that is not seen, and two images with one output: (5) to (7)."""
    seen = [
        (matrix, invisible_image(matrix, range(3)))
        for entries in product(map(Fraction, (-1, 0, 1)), repeat=6)
        for matrix in ([list(entries[:3]), list(entries[3:])],)
    ]
    proof.check(
        "every 2 x 3 matrix with entries -1, 0, 1 maps to 0 an image whose largest modulus is 1",
        all(
            image is not None
            and max(map(abs, image)) == 1
            and all(sum(w * z for w, z in zip(row, image, strict=True)) == 0 for row in matrix)
            for matrix, image in seen
        ),
        equation=5,
    )
    z, y, b = sp.symbols("z y b", real=True)
    half = sp.Rational(1, 2)
    proof.check(
        "grey plus and minus half of Z stay in [0, 1] and differ by Z",
        identical((half + z / 2) - (half - z / 2), z)
        and all((half + s * half) in (0, 1) for s in (-1, 1)),
        equation=6,
    )
    proof.check(
        "one output y cannot be nearer than 1/2 to two numbers at a distance of 1",
        identical((b + 1 - y) + (y - b), 1),
        equation=6,
    )
    c = sp.symbols("c:4", real=True)
    basis = sp.Matrix([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    image = basis * sp.Matrix(c[:3])
    shift = sp.Matrix(4, 4, lambda q, k: int(k == q + 1))
    proof.check(
        "a shift keeps the length of an image on the pixels that it moves",
        identical((shift * image).dot(shift * image), image.dot(image)),
        equation=7,
    )
    kept = sp.diag(1, 0, 0, 0) * shift
    proof.check(
        "leaving out all but r rows leaves N - r entries of 1: Frobenius norm and unit error",
        sum(v**2 for v in shift - kept) == 2 and kept.rank() == 1,
        equation=7,
    )


def _prove_attained(proof: Proof) -> None:
    """As many heads as the count says, exactly: (8)."""
    for heads, features in ((1, 3), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2)):
        size = heads * (features - 1) + 1
        found = normalised_heads(size, heads, features)
        mean = [
            [sum((a[q][k] for a in found), Fraction(0)) / heads for k in range(size)]
            for q in range(size)
        ]
        proof.check(
            f"{heads} heads of {features} features and row sums 1 make the identity of {size}",
            mean == [[Fraction(int(q == k)) for k in range(size)] for q in range(size)]
            and all(rank(a) == features and all(sum(row) == 1 for row in a) for a in found),
            equation=8,
        )


def _prove_kernels(proof: Proof) -> None:
    """Other kernels than shifts: (9) to (12)."""
    x, y = sp.symbols("x y")
    w = sp.symbols("w:4")
    p = sp.symbols("p:4")
    kernel = w[0] + w[1] * x + w[2] * y + w[3] * x * y
    output = p[0] + p[1] * x + p[2] * y + p[3] * x * y
    proof.check(
        "C^T p is the product of the polynomials of p and W; the highest terms do not cancel",
        identical(sp.Poly(kernel * output, x, y).coeff_monomial(x**2 * y**2), w[3] * p[3])
        and identical(sp.Poly(kernel * output, x, y).coeff_monomial(1), w[0] * p[0]),
        equation=9,
    )
    for taps, shape, stride in (((2,), (5,), 1), ((3,), (9,), 2), ((2, 2), (3, 4), 1)):
        offsets = list(product(*map(range, taps)))
        counts = [(n - k) // stride + 1 for n, k in zip(shape, taps, strict=True)]
        queries = [tuple(stride * i for i in at) for at in product(*map(range, counts))]
        proof.check(
            f"every kernel of {taps} taps with entries -1, 0, 1 on {shape} keys, stride {stride}",
            all(
                rank(convolution_matrix(dict(zip(offsets, v, strict=True)), shape, queries=queries))
                == (len(queries) if any(v) else 0)
                for v in product(map(Fraction, (-1, 0, 1)), repeat=len(offsets))
            ),
            equation=9,
        )
    leading, one, other, less, least = sp.symbols("w a b r s", nonnegative=True)
    proof.check(
        "two other taps: |W_0| - Σ|W_δ| |Z_δ| is Σ|W_δ| (1 - |Z_δ|) >= 0 more than |W_0| - Σ|W_δ|",
        identical(
            (leading - one * (1 - less) - other * (1 - least)) - (leading - one - other),
            one * less + other * least,
        )
        and nonnegative(one * less + other * least),
        equation=10,
    )
    for n in (3, 4):
        weights = sp.symbols(f"w:{n}")
        circulant = sp.Matrix(n, n, lambda q, k, n=n, w=weights: w[(k - q) % n])
        # Multiplication by t modulo t^n - 1, so that t stands for each root of unity in turn.
        t = sp.Symbol("t")
        wave = sp.Matrix([t**k for k in range(n)])
        seen = circulant * wave
        spectrum = sum(w * t**j for j, w in enumerate(weights))
        proof.check(
            f"waves are eigenvectors of a convolution on {n} pixels of a circle",
            all(sp.rem(sp.expand(seen[q] - spectrum * t**q), t**n - 1, t) == 0 for q in range(n)),
            equation=11,
        )
    proof.check(
        "under a causal mask a delay of Δ keeps a block of rank min(Δ, T - Δ) below the diagonal",
        all(
            rank([row[a : a + b] for row in shift_matrix((-d,), (n,))[d : d + b]]) == b
            for n in range(2, 8)
            for d in range(1, n)
            for a, b in [(0, min(d, n - d))]
        ),
        equation=12,
    )


def _prove_content(proof: Proof) -> None:
    """With content the layer is linear near the zero image: (13)."""
    c = sp.symbols("c:2")
    bright, dark = ([sp.Matrix(2, 3, sp.symbols(f"{n}{h}_:6")) for h in (0, 1)] for n in "ab")
    image = sp.Matrix(sp.symbols("x:3"))
    positional = c[0] * dark[0] + c[1] * dark[1]
    proof.check(
        "two heads, two queries, three keys: the layer is M X + Σ c_h (A^h(X) - A^h(0)) X",
        identical(
            (c[0] * bright[0] + c[1] * bright[1]) * image,
            positional * image
            + (c[0] * (bright[0] - dark[0]) + c[1] * (bright[1] - dark[1])) * image,
        ),
        equation=13,
    )
    size, omega, b, y, e = sp.symbols("rho omega b y e", real=True)
    proof.check(
        "two wanted outputs ρ apart and two outputs e apart: the errors add up to ρ - e or more, "
        "and half of it is ρ (1/2 - ω) for e = 2 ρ ω",
        identical((b + size - (y + e)) + (y - b), size - e)
        and identical((size - e).subs(e, 2 * size * omega) / 2, size * (sp.Rational(1, 2) - omega)),
        equation=13,
    )


def _prove_softmax(proof: Proof) -> None:
    """Softmax of scores of rank two has full rank: (14), (15)."""
    q, k = sp.symbols("q k", real=True)
    alpha = sp.Symbol("alpha", positive=True)
    proof.check(
        "-α (k - q)^2 + α q^2 is the inner product of (2 α q, -α) and (k, k^2)",
        identical(-alpha * (k - q) ** 2 + alpha * q**2, 2 * alpha * q * k - alpha * k**2),
        equation=14,
    )
    base = sp.Symbol("y", positive=True)
    for size in (2, 3, 4):
        nodes = [base**i for i in range(size)]
        matrix = sp.Matrix(size, size, lambda i, j, nodes=nodes: nodes[i] ** j)
        differences = sp.Mul(*(nodes[j] - nodes[i] for j in range(size) for i in range(j)))
        proof.check(
            f"the matrix y^(q k) is Vandermonde's, with nodes 1, y, y^2, ..., {size} pixels",
            identical(matrix.det(method="berkowitz"), differences),
            equation=15,
        )
    powers = fmpz_mat([[2 ** (i * j) for j in range(12)] for i in range(12)])
    proof.check("and of full rank for y = 2, twelve pixels", powers.rank() == 12, equation=15)
