"""T1 (Lemma 1). Heads that shift sum to a convolution.

Every identity is checked between polynomials in symbols that do not commute. Such polynomials form
the free ring on those symbols, and an identity that holds in the free ring holds in every ring, by
substitution: integers, rationals, reals, matrices. (Floating-point numbers are not a ring.)
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations, product

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, identical

__all__ = ["THEOREM", "layer", "prove"]

THEOREM = Theorem(
    slug="heads_that_shift_sum_to_a_convolution",
    number="T1",
    source="Lemma 1",
    title="Heads that shift sum to a convolution",
    gist="one head for each tap, in any ring",
    claim=(
        "Heads that each put all their attention on one shift, one head for every offset of the "
        "kernel, sum to the convolution exactly, in every ring, commutative or not. "
        "If A^h[q, k] = [k = q + f(h)], f is a bijection from the heads onto the offsets and "
        "W_val^h W_out^h = W_{f(h)}, then MHSA(X)_q = b + Σ_δ X_{q+δ} W_δ. "
        "For any other f the layer is the convolution whose matrix at δ is the sum of "
        "W_val^h W_out^h over the heads that f sends to δ."
    ),
    hypotheses=(
        "f is a bijection from the heads onto the kernel's offsets",
        "A^h[q, k] is 1 if k - q = f(h), and 0 otherwise",
        "W_val^h W_out^h = W_{f(h)} for every head",
        "q + δ is a key for every query q and every offset δ (borders are padded keys)",
    ),
    notation={
        "X_k": "the pixel at key k, a row of D_in ring elements",
        "A^h": "the attention of head h, queries × keys, of zeros and ones",
        "W_val^h, W_out^h": "value matrix, D_in × D_h, and head h's block of W_out, D_h × D_out",
        "W_δ, b": "the convolution's matrix at offset δ, D_in × D_out, and its bias",
        "f": "from heads to offsets in Z^d",
    },
    proof_idea=(
        "Concatenating heads and multiplying by a stack of blocks is a sum over heads; a one-hot "
        "row picks one pixel; associativity joins the two matrices of a head; a bijection turns "
        "the sum over heads into the sum over offsets."
    ),
    references=("arXiv:1911.03584, Lemma 1",),
    objects=(
        "constructions.attention_from_conv",
        "constructions.MultiHeadSelfAttention",
        "constructions.Stencil",
    ),
)

Position = tuple[sp.Expr, ...]


def symbol(name: str) -> sp.Symbol:
    """An element of the free ring: it commutes with nothing but integers."""
    return sp.Symbol(name, commutative=False)


def matrix(name: str, rows: int, columns: int) -> sp.Matrix:
    """A matrix of distinct elements of the free ring."""
    return sp.Matrix(rows, columns, lambda i, j: symbol(f"{name}_{i}{j}"))


def position(name: str, dimension: int) -> Position:
    """A point of Z^d with symbolic coordinates."""
    return tuple(sp.Symbol(f"{name}_{axis}", integer=True) for axis in range(dimension))


def plus(left: Sequence[object], right: Sequence[object]) -> Position:
    """The sum of two points."""
    return tuple(sp.sympify(a) + sp.sympify(b) for a, b in zip(left, right, strict=True))


def minus(point: Sequence[object]) -> Position:
    """The opposite point."""
    return tuple(-sp.sympify(a) for a in point)


def pixel(at: Position, channels: int) -> sp.Matrix:
    """The row X_k: each channel is a function from positions into the free ring."""
    return sp.Matrix([[sp.Function(f"X{c}", commutative=False)(*at) for c in range(channels)]])


def tap(at: Position) -> sp.Expr:
    """The 1 x 1 matrix W_delta of a kernel given as a function of the offset."""
    return sp.Function("W", commutative=False)(*at)


def attend(target: Position, channels: int) -> sp.Matrix:
    """The product of a one-hot row and the image, over all keys within one step of the target."""
    row = sp.zeros(1, channels)
    for step in product((-1, 0, 1), repeat=len(target)):
        key = plus(target, step)
        weight = sp.Mul(*(sp.KroneckerDelta(a, b) for a, b in zip(key, target, strict=True)))
        row += weight * pixel(key, channels)
    return row


def layer(
    attended: Sequence[sp.Matrix],
    values: Sequence[sp.Matrix],
    outputs: Sequence[sp.Matrix],
    bias: sp.Matrix,
) -> sp.Matrix:
    """The paper's layer at one query: concat_h(A^h X W_val^h) W_out + b, as it is written."""
    heads = [row * value for row, value in zip(attended, values, strict=True)]
    return sp.Matrix.hstack(*heads) * sp.Matrix.vstack(*outputs) + bias


def inversions(order: Sequence[int]) -> int:
    """The number of pairs that stand in the wrong order."""
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])


def swapped(order: Sequence[int], i: int) -> tuple[int, ...]:
    """The order with its entries i and i + 1 exchanged."""
    return (*order[:i], order[i + 1], order[i], *order[i + 2 :])


def prove() -> tuple[Step, ...]:
    """Prove T1: equations (2) to (9) of its page."""
    proof = Proof()
    _prove_blocks(proof)
    _prove_row(proof)
    _prove_reindexing(proof)
    _prove_layer(proof)
    _prove_conventions(proof)
    _prove_offsets(proof)
    return proof.steps


def _prove_blocks(proof: Proof) -> None:
    """Concatenation times stack is the sum over heads: (2), (3)."""
    first, second, left, right = (symbol(name) for name in ("P", "Q", "h", "w"))
    proof.check(
        "two blocks, induction on the second block's width, start: no column adds nothing",
        identical(first + 0, first),
        equation=2,
    )
    proof.check(
        "two blocks, induction on the second block's width, step: one more column",
        identical((first + second) + left * right, first + (second + left * right)),
        equation=2,
    )
    proof.check(
        "two blocks of every width from 1 to 3, entry by entry",
        all(
            identical(
                sp.Matrix.hstack(matrix("h", 1, m), matrix("g", 1, n))
                * sp.Matrix.vstack(matrix("v", m, 2), matrix("w", n, 2)),
                matrix("h", 1, m) * matrix("v", m, 2) + matrix("g", 1, n) * matrix("w", n, 2),
            )
            for m, n in product((1, 2, 3), repeat=2)
        ),
        equation=2,
    )
    # the first N heads are one block of width 2N, the head that is added a block of width 2
    heads = [matrix(f"h{n}", 1, 2) for n in range(4)]
    blocks = [matrix(f"w{n}", 2, 2) for n in range(4)]
    total = heads[0] * blocks[0]
    for count in (1, 2, 3):
        together = sp.Matrix.hstack(*heads[:count]), sp.Matrix.vstack(*blocks[:count])
        joined = sp.Matrix.hstack(together[0], heads[count]) * sp.Matrix.vstack(
            together[1], blocks[count]
        )
        total = total + heads[count] * blocks[count]
        proof.check(
            f"head {count + 1}: the first {count} are one block, and the sum gains one term",
            identical(joined, together[0] * together[1] + heads[count] * blocks[count])
            and identical(joined, total),
            equation=3,
        )


def _prove_row(proof: Proof) -> None:
    """A one-hot row picks one pixel, and a head's two matrices act as one: (4), (5)."""
    kept, other = symbol("x"), symbol("y")
    proof.check(
        "one key at a time: weight 0 keeps the sum 0, weight 1 makes it x, weight 0 keeps it x",
        identical(0 + 0 * other, 0)
        and identical(0 + 1 * kept, kept)
        and identical(kept + 0 * other, kept),
        equation=4,
    )
    for d in (1, 2, 3):
        target = plus(position("q", d), position("D", d))
        proof.check(
            f"on the {3**d} keys within a step of q + Δ the one-hot row picks that pixel",
            identical(attend(target, 2), pixel(target, 2)),
            equation=4,
        )
    proof.check(
        "(X W_val) W_out = X (W_val W_out) for D_in, D_h, D_out from 1 to 3",
        all(
            identical(
                (matrix("x", 1, a) * matrix("v", a, b)) * matrix("o", b, c),
                matrix("x", 1, a) * (matrix("v", a, b) * matrix("o", b, c)),
            )
            for a, b, c in product((1, 2, 3), repeat=3)
        ),
        equation=5,
    )


def _prove_reindexing(proof: Proof) -> None:
    """A finite sum does not depend on the order of its terms: (6)."""
    before, a, b, after = (symbol(name) for name in ("S", "a", "b", "T"))
    proof.check(
        "exchanging two neighbouring terms leaves the sum",
        identical(before + a + b + after, before + b + a + after),
        equation=6,
    )
    proof.check(
        "orders of two to five: exchanging neighbours in the wrong order removes one inversion",
        all(
            inversions(swapped(order, i)) == inversions(order) - 1
            for size in (2, 3, 4, 5)
            for order in permutations(range(size))
            for i in range(size - 1)
            if order[i] > order[i + 1]
        ),
        equation=6,
    )
    proof.check(
        "orders of one to five: only the sorted one has no inverted neighbours",
        all(
            order == tuple(sorted(order)) or any(a > b for a, b in pairwise(order))
            for size in (1, 2, 3, 4, 5)
            for order in permutations(range(size))
        ),
        equation=6,
    )


def _prove_layer(proof: Proof) -> None:
    """The whole chain, with symbolic query, shifts and matrices: (7), (8)."""
    for d, count in product((1, 2, 3), (1, 2, 3)):
        query, bias = position("q", d), matrix("b", 1, 2)
        offsets = [position(f"D{h}", d) for h in range(count)]
        values = [matrix(f"v{h}", 3, 2) for h in range(count)]
        outputs = [matrix(f"o{h}", 2, 2) for h in range(count)]
        targets = [plus(query, offset) for offset in offsets]
        attention = layer([attend(t, 3) for t in targets], values, outputs, bias)
        convolution = bias
        for h in reversed(range(count)):  # any order of the offsets, by (6)
            convolution = convolution + pixel(targets[h], 3) * (values[h] * outputs[h])
        proof.check(
            f"layer = convolution, {count} heads, 3 x 2 and 2 x 2 matrices, d = {d}, all symbolic",
            identical(attention, convolution),
            equation=8,
        )
    query, offset = position("q", 2), position("D", 2)
    twice = [matrix("v0", 2, 2), matrix("v1", 2, 2)], [matrix("o0", 2, 2), matrix("o1", 2, 2)]
    target = plus(query, offset)
    proof.check(
        "two heads sent to one offset act as one tap of their 2 x 2 matrices' sum, d = 2",
        identical(
            layer([attend(target, 2)] * 2, *twice, sp.zeros(1, 2)),
            pixel(target, 2) * (twice[0][0] * twice[1][0] + twice[0][1] * twice[1][1]),
        ),
        equation=7,
    )


def _prove_conventions(proof: Proof) -> None:
    """With q - k instead of k - q the kernel is flipped: (9), (10)."""
    one = sp.ones(1, 1)

    def reads(
        query: Position, shifts: Sequence[Position], kernel: Callable[[Position], sp.Expr]
    ) -> sp.Matrix:
        """The layer whose head h attends q - f(h) and multiplies by `kernel(f(h))`."""
        rows = [attend(plus(query, minus(shift)), 1) for shift in shifts]
        return layer(
            rows, [one] * len(rows), [sp.Matrix([[kernel(s)]]) for s in shifts], sp.zeros(1, 1)
        )

    def convolution(
        query: Position, offsets: Sequence[Position], kernel: Callable[[Position], sp.Expr]
    ) -> sp.Matrix:
        """The 1 x 1 matrix of the sum of X_(q + δ) kernel(δ)."""
        return sp.Matrix([[sum(pixel(plus(query, o), 1)[0] * kernel(o) for o in offsets)]])

    for d in (1, 2, 3):
        query, shifts = position("q", d), [position(f"D{h}", d) for h in range(3)]
        proof.check(
            f"heads that attend q - f(h) compute the flipped kernel, d = {d}, shifts symbolic",
            identical(
                reads(query, shifts, tap),
                convolution(query, [minus(s) for s in shifts], lambda o: tap(minus(o))),
            ),
            equation=9,
        )
        cube = [tuple(map(sp.Integer, point)) for point in product((-1, 0, 1), repeat=d)]
        proof.check(
            f"over the symmetric set of K = 3 that is another layer, d = {d}",
            not identical(reads(query, cube, tap), convolution(query, cube, tap)),
            equation=9,
        )
        proof.check(
            f"over the symmetric set, giving head h the matrix of -f(h) repairs it, d = {d}",
            identical(reads(query, cube, lambda s: tap(minus(s))), convolution(query, cube, tap)),
            equation=10,
        )
        even = [tuple(map(sp.Integer, point)) for point in product((0, 1), repeat=d)]
        proof.check(
            f"for K = 2 nothing repairs it: pixels of the window are never read, d = {d}",
            not {plus(query, o) for o in even} <= {plus(query, minus(o)) for o in even},
            equation=10,
        )


def _prove_offsets(proof: Proof) -> None:
    """The paper's set of shifts has K^d elements for odd K only; ours always: (11), (12)."""
    m = sp.Symbol("m", integer=True, nonnegative=True)
    half_odd, half_even = sp.floor((2 * m + 1) / sp.Integer(2)), sp.floor(2 * m / sp.Integer(2))
    proof.check(
        "K = 2m + 1: the interval -floor(K/2) .. floor(K/2) has K elements",
        identical(2 * half_odd + 1, 2 * m + 1),
        equation=11,
    )
    proof.check(
        "K = 2m: it has K + 1 elements, one too many on each axis",
        identical(2 * half_even + 1 - 2 * m, 1),
        equation=11,
    )
    i, j, low = sp.symbols("i j p", integer=True)
    dilation = sp.Symbol("s", integer=True, positive=True)
    proof.check(
        "the offsets of two kernel indices differ by the dilation times the indices' difference",
        identical((j * dilation - low) - (i * dilation - low), dilation * (j - i)),
        equation=12,
    )
    proof.check(
        "dilation 1 and padding floor(K/2), K = 2m + 1: the offsets run from -m to m",
        identical(0 - half_odd, -m) and identical((2 * m + 1 - 1) - half_odd, m),
        equation=12,
    )
