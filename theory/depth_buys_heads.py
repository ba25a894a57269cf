"""T13. Depth buys heads.

New here as a statement about heads; separable kernels and tensor trains are known (arXiv 1405.3866;
Oseledets 2011). The page `docs/theorems/depth_buys_heads.md` numbers the equations.

Ranks are exact, over the rationals; symbols of layers do not commute.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from math import prod

import sympy as sp
from flint import fmpq, fmpq_mat

from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative

__all__ = [
    "BORDERS",
    "THEOREM",
    "balanced_ternary",
    "least_heads",
    "prove",
    "rank",
    "signed_binary",
    "train",
    "unfolding_ranks",
]

Matrix = list[list[Fraction]]

THEOREM = Theorem(
    slug="depth_buys_heads",
    number="T13",
    source="",
    title="Depth buys heads",
    gist="heads multiply over layers, and shifts add",
    claim=(
        "Layers of N_1, N_2, up to N_L positional heads compute no kernel whose rank is above "
        "N_1 N_2 ⋯ N_L, and two layers of K_1 and K_2 heads compute every kernel of K_1 x K_2 "
        "taps. "
        "With residuals the bound is (N_1 + 1) ⋯ (N_L + 1). The two layers are exact on every "
        "border that torch has, with stride, dilation and a bias in the last, and their least "
        "width is the rank of the kernel's matricisation. Axes may be divided further, into digits "
        "of which steps are made: with digits that agree in sign the layers are exact on the "
        "image's own grid, with zeros, replicate and circular borders; on the padded grid with "
        "any digits and every border. For kernels of full rank K^2 two layers need 2 K heads, and "
        "layers of any number 6 log_3 K, which K = 3^m attains on the padded grid."
    ),
    hypotheses=(
        "weights depend on positions alone, and are nonnegative; heads have any dimension, layers "
        "any width, and a bias",
        "for the bounds, some query has all taps on distinct keys",
        "own grid: the padding before an axis is a multiple of the dilation, and that of both "
        "sides at most the kernel's reach",
    ),
    notation={
        "N_l, L": "heads of layer l, and the number of layers",
        "A^h, V_h": "weights of a head, queries by keys, and its matrix W_val^h W_out^h",
        "W_δ, M, r": "matrices of the taps, the matrix of the flattened taps, and its rank",
        "U_i, Z_j, E": "matrices of the first and the second layer, and the width between them",
        "β": "a border: the pixel at each position, or none",
        "n, d, e": "pixels of an axis, and two steps",
        "S_l, e_l": "the convolution that layer l is to compute, and what it errs by",
    },
    proof_idea=(
        "One head after another is a head: its weights are the product of theirs, and so are its "
        "matrices. Conversely a kernel is a product of tensors, one for each layer, whose widths "
        "are the ranks of its unfoldings; borders act on each axis, and steps in one direction "
        "stay between the query and the tap."
    ),
    references=("arXiv:1405.3866", "arXiv:1808.05517", "arXiv:1410.7220"),
    objects=("constructions.attention_from_conv", "constructions.certify"),
)

# Exact matrices -----------------------------------------------------------------------------------


def rank(matrix: Sequence[Sequence[Fraction]]) -> int:
    """The rank over the rationals; 0 of an empty matrix."""
    if not matrix or not matrix[0]:
        return 0
    return int(fmpq_mat([[fmpq(v.numerator, v.denominator) for v in row] for row in matrix]).rank())


def factored(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """A product of as many columns and rows as the rank: pivot columns, and the reduced rows."""
    reduced, found = fmpq_mat(
        [[fmpq(v.numerator, v.denominator) for v in row] for row in matrix]
    ).rref()
    width = len(matrix[0])
    rows = [
        [Fraction(int(reduced[i, j].p), int(reduced[i, j].q)) for j in range(width)]
        for i in range(found)
    ]
    pivots = [next(j for j, v in enumerate(row) if v) for row in rows]
    return [[row[j] for j in pivots] for row in matrix], rows


def multiplied(left: Matrix, right: Matrix) -> Matrix:
    """The product of two matrices."""
    columns = list(zip(*right, strict=True))
    return [
        [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in columns]
        for row in left
    ]


def reshaped(values: Sequence[Fraction], rows: int) -> Matrix:
    """A flat list as so many rows."""
    width = len(values) // rows
    return [list(values[i * width : (i + 1) * width]) for i in range(rows)]


def unfolding_ranks(kernel: Sequence[Fraction], taps: Sequence[int], inputs: int = 1) -> list[int]:
    """The ranks of the unfoldings of a kernel (inputs, taps of each layer, outputs), row-major."""
    return [rank(reshaped(kernel, inputs * prod(taps[:cut]))) for cut in range(1, len(taps))]


def train(kernel: Sequence[Fraction], taps: Sequence[int], inputs: int = 1) -> list[Matrix]:
    """Equation (10): a matrix (inputs x taps, outputs) for each layer; their product is it."""
    parts, left, width = [], list(kernel), inputs
    for count in taps[:-1]:
        first, second = factored(reshaped(left, width * count))
        parts.append(first)
        left, width = [v for row in second for v in row], len(second)
    parts.append(reshaped(left, width * taps[-1]) if width else [])
    return parts


def contracted(parts: Sequence[Matrix], taps: Sequence[int], inputs: int = 1) -> list[Fraction]:
    """The kernel that a train of matrices makes, row-major."""
    whole = parts[0]  # (inputs x taps of the first, width)
    for part, count in zip(parts[1:], taps[1:], strict=True):
        flat = [v for row in part for v in row]
        width = len(whole[0])
        product_ = multiplied(whole, reshaped(flat, width))
        rows = [v for row in product_ for v in row]
        whole = reshaped(rows, len(whole) * count)
    return [v for row in whole for v in row]


# Digits and borders -------------------------------------------------------------------------------


def signed_binary(number: int, count: int) -> list[int]:
    """Steps of ±2^i or 0, i = 0, ..., count - 1, all of the number's sign."""
    sign = -1 if number < 0 else 1
    return [sign * (abs(number) & (1 << i)) for i in range(count)]


def balanced_ternary(number: int, count: int) -> list[int]:
    """Steps of ±3^i or 0, of both signs."""
    steps, left = [], number
    for i in range(count):
        digit = (left + 1) % 3 - 1
        steps.append(digit * 3**i)
        left = (left - digit) // 3
    return steps


Border = Callable[[int, int], int | None]
"""The pixel at a position of an axis of n pixels, or None for a zero."""


def _reflected(k: int, n: int) -> int:
    return (n - 1) - abs((n - 1) - abs(k))


BORDERS: dict[str, Border] = {
    "zeros": lambda k, n: k if 0 <= k < n else None,
    "replicate": lambda k, n: min(max(k, 0), n - 1),
    "reflect": _reflected,
    "circular": lambda k, n: k % n,
}


def after_two_steps(border: Border, query: int, first: int, second: int, n: int) -> int | None:
    """What a step of the last layer, and then one of the layer before it, arrive at."""
    between = border(query + first, n)
    return None if between is None else border(between + second, n)


def least_heads(rank_of_kernel: int) -> int:
    """The least Σ N_l of layers with Π N_l >= r, whatever their number: threes, and few twos."""
    best = max(rank_of_kernel, 1)
    threes = 0
    while True:
        rest, power = -(-rank_of_kernel // 3**threes), 0
        while 2**power < rest:
            power += 1
        best = min(best, 3 * threes + 2 * power)
        if rest <= 1:
            return best
        threes += 1


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Prove T13: equations (1) to (13) of its page."""
    proof = Proof()
    _prove_products(proof)
    _prove_two_layers(proof)
    _prove_digits(proof)
    _prove_trains(proof)
    _prove_counts(proof)
    _prove_bounds(proof)
    return proof.steps


def _prove_products(proof: Proof) -> None:
    """Heads multiply: (1) to (4)."""

    def letters(names: str) -> list[sp.Symbol]:
        return [sp.Symbol(name, commutative=False) for name in names.split()]

    x, c, k = letters("X C K")
    a, b = letters("A1 A2"), letters("B1 B2 B3")
    v, w = letters("V1 V2"), letters("W1 W2 W3")
    first = sum(weights * x * matrix for weights, matrix in zip(a, v, strict=True)) + c
    second = sum(weights * first * matrix for weights, matrix in zip(b, w, strict=True)) + k
    pairs = list(product(range(2), range(3)))
    paths = sum(b[g] * a[h] * x * v[h] * w[g] for h, g in pairs)
    constants = sum(b[g] * c * w[g] for g in range(3)) + k
    proof.check(
        "two heads, then three: six of weights B A and matrices V W, and a constant; weights, "
        "matrices, image and biases do not commute",
        identical(second, paths + constants) and len(pairs) == 2 * 3,
        equation=1,
    )
    left = sp.Matrix(2, 2, sp.symbols("a:4", nonnegative=True))
    right = sp.Matrix(2, 2, sp.symbols("b:4", nonnegative=True))
    both = sp.expand(left * right)
    proof.check(
        "products of nonnegative weights are nonnegative, two queries and keys",
        all(nonnegative(entry) for entry in both),
        equation=2,
    )
    s, t = sp.symbols("s t")
    rows = sp.Matrix([[s, 1 - s], [t, 1 - t]])
    others = sp.Matrix([[t, 1 - t], [s * t, 1 - s * t]])
    ones = sp.Matrix([1, 1])
    proof.check(
        "and of rows that sum to one, rows that sum to one",
        identical(rows * (others * ones), ones) and identical((rows * others) * ones, ones),
        equation=2,
    )
    unit, p, q = sp.Integer(1), *letters("P Q")
    first = unit * x * p + sum(weights * x * m for weights, m in zip(a, v, strict=True))
    second = unit * first * q + sum(weights * first * m for weights, m in zip(b, w, strict=True))
    ways = sum(
        weights * other * x * matrix * last
        for other, matrix in zip([unit, *a], [p, *v], strict=True)
        for weights, last in zip([unit, *b], [q, *w], strict=True)
    )
    proof.check(
        "a residual X P is one head more: two and three heads make (2 + 1)(3 + 1) of them",
        identical(second, ways) and (2 + 1) * (3 + 1) == 12,
        equation=3,
    )
    weights = sp.Matrix(3, 2, sp.symbols("w:6"))
    matrices = sp.Matrix(2, 3, sp.symbols("v:6"))
    proof.check(
        "one head, then two: the 3 x 3 minor of the taps' matrix is zero, weights and matrices "
        "symbolic",
        identical((weights * matrices).det(method="berkowitz"), 0),
        equation=4,
    )


def _prove_two_layers(proof: Proof) -> None:
    """The first axis, then the rest: (5) to (7)."""
    i, j = range(3), range(2)
    x = {(a, b): sp.Symbol(f"X{a}{b}", commutative=False) for a, b in product(i, j)}
    u = [sp.Symbol(f"U{a}", commutative=False) for a in i]
    z = [sp.Symbol(f"Z{b}", commutative=False) for b in j]
    proof.check(
        "3 x 2 taps: rows of what columns have made are the kernel of the matrices U_i Z_j",
        identical(
            sum(sum(x[a, b] * u[a] for a in i) * z[b] for b in j),
            sum(x[a, b] * (u[a] * z[b]) for a, b in product(i, j)),
        ),
        equation=5,
    )
    entries = list(map(Fraction, (-1, 0, 1)))
    found = True
    for values in product(entries, repeat=6):
        matrix = reshaped(values, 3)
        first, second = factored(matrix)
        own = multiplied(first, second) if second else reshaped([Fraction(0)] * 6, 3)
        found &= own == matrix and len(second) == rank(matrix)
    proof.check(
        "every 3 x 2 kernel of one channel with entries -1, 0, 1: U and Z of width its rank",
        found,
        equation=6,
    )
    proof.check(
        "axes of 1, 2, 4 by 1, 3 pixels, four borders, every position that torch pads: what the "
        "second layer and then the first arrive at is the border's own pixel",
        all(_is_axiswise(name, shape) for name in BORDERS for shape in product((1, 2, 4), (1, 3))),
        equation=7,
    )


def _positions(name: str, n: int) -> range:
    """What torch allows of padding on an axis of n pixels."""
    most = {"reflect": n - 1, "circular": n}.get(name, n + 2)
    return range(-most, n + most)


def _is_axiswise(name: str, shape: Sequence[int]) -> bool:
    """Whether (β(β(k_1), k_2)) is (β(k_1), β(k_2)), none where either is none."""
    border = BORDERS[name]
    image = set(product(*map(range, shape)))
    for k in product(*(_positions(name, n) for n in shape)):
        column = border(k[1], shape[1])  # the last layer moves along the second axis alone
        row = None if column is None else border(k[0], shape[0])
        reached = None if row is None or column is None else (row, column)
        ends = [border(p, n) for p, n in zip(k, shape, strict=True)]
        wanted = None if None in ends else tuple(ends)
        if reached != wanted or not (reached is None or reached in image):
            return False
    return True


def _prove_digits(proof: Proof) -> None:
    """Digits, and steps on the image's own grid: (8) and (9)."""
    for count in range(1, 7):
        reach = 2**count - 1
        steps = [signed_binary(k, count) for k in range(-reach, reach + 1)]
        proof.check(
            f"{2 * reach + 1} taps: sums of {count} steps, each of three, that agree in sign",
            all(
                sum(s) == k
                and all(step in (-(2**i), 0, 2**i) and step * k >= 0 for i, step in enumerate(s))
                for k, s in zip(range(-reach, reach + 1), steps, strict=True)
            ),
            equation=8,
        )
    for count in range(1, 5):
        reach = (3**count - 1) // 2
        sums = [sum(s) for s in product(*((-(3**i), 0, 3**i) for i in range(count)))]
        proof.check(
            f"{3**count} taps: every one is one sum of {count} steps of three, of both signs",
            sorted(sums) == list(range(-reach, reach + 1))
            and all(sum(balanced_ternary(k, count)) == k for k in range(-reach, reach + 1)),
            equation=8,
        )
    for name in ("zeros", "replicate", "circular"):
        border = BORDERS[name]
        proof.check(
            f"{name}: every axis of up to 6 pixels, query on it, two steps up to 8 of one sign",
            all(
                after_two_steps(border, q, sign * d, sign * e, n) == border(q + sign * (d + e), n)
                for n in range(1, 7)
                for q, d, e in product(range(n), range(9), range(9))
                for sign in (1, -1)
            ),
            equation=9,
        )
    y, e, top = sp.symbols("y e n", nonnegative=True)
    proof.check(
        "beyond the last pixel n, at n + y, the clamp is n before a step e forth and after it",
        sp.Min(top, top + e) == top and sp.Min(top, top + y + e) == top,
        equation=9,
    )


def _prove_trains(proof: Proof) -> None:
    """Widths are ranks of unfoldings, all at once: (10)."""
    bits = list(map(Fraction, (0, 1)))
    for taps in ((2, 2, 2), (3, 2, 1), (1, 2, 2, 2)):
        proof.check(
            f"every kernel of {taps} taps with entries 0, 1: its train is it, each width the rank",
            all(_is_train(kernel, taps) for kernel in product(bits, repeat=prod(taps))),
            equation=10,
        )
    kernels = [[Fraction((7 * n**3 + 3 * n + k) % 11 - 5) for n in range(72)] for k in range(9)]
    proof.check(
        "nine kernels of 3, 2, 2 taps from two channels to three",
        all(_is_train(kernel, (3, 2, 2), 2) for kernel in kernels),
        equation=10,
    )


def _is_train(kernel: Sequence[Fraction], taps: Sequence[int], inputs: int = 1) -> bool:
    if not any(kernel):
        return unfolding_ranks(kernel, taps, inputs) == [0] * (len(taps) - 1)
    parts = train(kernel, taps, inputs)
    found = [len(part[0]) for part in parts[:-1]]
    return contracted(parts, taps, inputs) == list(kernel) and found == unfolding_ranks(
        kernel, taps, inputs
    )


def _prove_counts(proof: Proof) -> None:
    """How few heads there can be: (11)."""
    n, m = sp.symbols("n m", nonnegative=True)
    proof.check(
        "two layers: (N + M)^2 is (N - M)^2 more than 4 N M",
        identical((n + m) ** 2 - (n - m) ** 2, 4 * n * m),
        equation=11,
    )
    proof.check(
        "3^N >= N^3 for N = 1, 2, 3, with equality at 3 alone",
        [3**k - k**3 for k in (1, 2, 3)] == [2, 1, 0],
        equation=11,
    )
    t = sp.Symbol("t", nonnegative=True)
    more = sp.expand((3 * n**3 - (n + 1) ** 3).subs(n, 3 + t))
    proof.check(
        "and 3 N^3 > (N + 1)^3 from N = 3 on, so that it stays so",
        sp.expand(more).subs(t, 0) == 17 and nonnegative(more - 17),
        equation=11,
    )
    proof.check(
        "the least Σ N_l with Π N_l >= r is 3 m at r = 3^m, and never has 3^Σ below r^3, r up to "
        "729: all products searched",
        all(least_heads(3**m) == 3 * m for m in range(1, 7))
        and all(least == least_heads(r) and 3**least >= r**3 for r, least in _searched(729)),
        equation=11,
    )


def _searched(most: int) -> Iterator[tuple[int, int]]:
    """For each r the least sum of numbers whose product is at least r, by dynamic programming."""
    largest = [1]  # product for each sum
    while largest[-1] < most:
        total = len(largest)
        largest.append(max(k * largest[total - k] for k in range(1, total + 1)))
    for r in range(2, most + 1):
        yield r, next(total for total, value in enumerate(largest) if value >= r)


def _prove_bounds(proof: Proof) -> None:
    """What the layers err by together: (12) and (13)."""
    x, b, c = (sp.Symbol(name, commutative=False) for name in ("X", "b", "c"))
    s = [sp.Symbol(f"S{i}", commutative=False) for i in (1, 2, 3)]
    e = [sp.Symbol(f"e{i}", commutative=False) for i in (1, 2, 3)]
    seen = x
    for layer, error in zip(s, e, strict=True):
        seen = layer * seen + error
    exact = s[2] * (s[1] * (s[0] * x)) + b
    proof.check(
        "three linear layers: what they err by is S_3 S_2 e_1 + S_3 e_2 + e_3",
        identical((seen + b) - exact, s[2] * s[1] * e[0] + s[2] * e[1] + e[2]),
        equation=12,
    )
    ways = [sp.Symbol(f"P{i}", commutative=False) for i in range(3)]
    taps = [sp.Symbol(f"W{i}", commutative=False) for i in range(3)]
    pixels = [sp.Symbol(f"X{i}", commutative=False) for i in range(3)]
    proof.check(
        "three ways: the layers less the convolution are Σ X (P - W)",
        identical(
            (sum(k * p for k, p in zip(pixels, ways, strict=True)) + c)
            - (sum(k * w for k, w in zip(pixels, taps, strict=True)) + c),
            sum(k * (p - w) for k, p, w in zip(pixels, ways, taps, strict=True)),
        ),
        equation=13,
    )
