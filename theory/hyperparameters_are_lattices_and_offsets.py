"""T6. Hyperparameters are lattices and offsets.

New here; the paper's remarks pad with zeros, pool for a stride and shift heads for a dilation. The
page `docs/theorems/hyperparameters_are_lattices_and_offsets.md` numbers the equations.

Positions are integers on one axis: in Z^d each equation between positions holds axis by axis.
Sizes, strides and dilations are symbolic, an integer n >= m written m + c with c >= 0. Pixels and
matrices have their entries in the free ring, whose symbols commute with nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import permutations, product
from typing import TypeVar

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive

__all__ = [
    "THEOREM",
    "offset",
    "outputs",
    "pooled_outputs",
    "prove",
    "transposed_offset",
    "transposed_outputs",
]

THEOREM = Theorem(
    slug="hyperparameters_are_lattices_and_offsets",
    number="T6",
    source="",
    title="Hyperparameters are lattices and offsets",
    gist="every option of torch, transposed convolutions and pooling",
    claim=(
        "Every option of a convolution is a choice of two lattices, of the offsets between them, "
        "of the blocks of its matrices or of what stands beyond the border, in every dimension. "
        "The stride is the spacing of the queries, the dilation that of the offsets, and padding "
        "moves the offsets; the outputs are the points of the query lattice whose every target "
        "lies in the padded image. A transposed convolution has its keys on the coarse lattice, "
        "its queries on the fine one and its offsets negated, and its attention matrices are the "
        "transposes of the convolution's: <conv(X), Y> = <X, conv_transpose(Y)>. Average pooling "
        "is one head, uniform over a window of keys, and its options are the query lattice, the "
        "keys that share the attention and, for a divisor of its own, the head's matrix."
    ),
    hypotheses=(
        "images have at least one pixel on every axis; kernel, stride, dilation and groups are "
        "at least 1, padding and output padding at least 0",
        "for the pixels that heads see: one head for each offset, each one-hot on its target "
        "where a key stands there, and on a sink of value zero where none does",
        "for the duality: zeros beyond the border and no bias",
        "for pooling: real entries, and a padding of at most half the window",
    ),
    notation={
        "n": "pixels on an axis",
        "k, s, r": "kernel size, stride, dilation",
        "p_-, p_+": "how far the targets begin before the first pixel and end after the last",
        "i, j, o": "index of a pixel, of the kernel, of an output",
        "q, δ, t = q + δ": "position of a query, an offset, and a head's target",
        "Q, K": "the lattices of the queries and of the pixels",
        "β": "the border: from targets to pixels, or to none",
        "e": "output padding",
        "w": "window of a pooling",
        "X_k, Y_q": "a pixel, a row of D_in ring elements; an output, D_out of them",
        "W_δ, b": "the matrix at an offset, D_in × D_out, and the bias",
    },
    proof_idea=(
        "Put the first pixel at 0 and subtract the padding from the index into the padded image: "
        "what depends on the output is the query, what depends on the kernel index the offset. "
        "Division with remainder counts the queries whose last target fits. A transposed "
        "convolution scatters along the same pairs (pixel, output) that a convolution gathers "
        "along, so reading the pairs from the other end swaps the lattices and negates the offset. "
        "A softmax of equal scores shares the attention evenly."
    ),
    references=("arXiv:1911.03584", "arXiv:1603.07285"),
    objects=(
        "constructions.encodings.Lattice",
        "constructions.Stencil",
        "constructions.attention_from_conv",
    ),
)

Number = TypeVar("Number", int, sp.Expr)
Point = tuple[int, ...]


# The dictionary, for integers and for symbols -----------------------------------------------------


def offset(j: Number, dilation: Number, low: Number) -> Number:
    """The offset of kernel index j: key minus query."""
    return j * dilation - low


def transposed_offset(j: Number, dilation: Number, padding: Number) -> Number:
    """The offset of kernel index j of a transposed convolution."""
    return padding - j * dilation


def outputs(size: int, kernel: int, stride: int, dilation: int, low: int, high: int) -> int:
    """The number of outputs on an axis: (6) of the page; 0 where the kernel does not fit."""
    return max(0, (size + low + high - dilation * (kernel - 1) - 1) // stride + 1)


def transposed_outputs(
    size: Number,
    kernel: Number,
    stride: Number,
    dilation: Number,
    padding: Number,
    extra: Number,
) -> Number:
    """The number of outputs of a transposed convolution on an axis: (12) of the page."""
    return (size - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding + extra


def pooled_outputs(size: int, window: int, stride: int, padding: int, *, ceil: bool) -> int:
    """The number of outputs of an average pooling on an axis: (19) of the page."""
    room = size + 2 * padding - window
    if not ceil:
        return outputs(size, window, stride, 1, padding, padding)
    return max(0, min(-(-room // stride), (size + padding - 1) // stride) + 1)


# The proof ----------------------------------------------------------------------------------------

OUTPUT, TAP, PIXEL = sp.symbols("o j i", integer=True)
LOW, HIGH, PADDING = sp.symbols("p_- p_+ p", integer=True)
STRIDE, DILATION = sp.symbols("s r", integer=True, positive=True)
M, C, E = sp.symbols("m c e", integer=True, nonnegative=True)


def prove() -> tuple[Step, ...]:
    """Prove T6: equations (2) to (20) of its page."""
    proof = Proof()
    _prove_gather(proof)
    _prove_count(proof)
    _prove_named_padding(proof)
    _prove_borders(proof)
    _prove_blocks(proof)
    _prove_scatter(proof)
    _prove_transposed_sizes(proof)
    _prove_pairs(proof)
    _prove_adjoint(proof)
    _prove_pooling(proof)
    return proof.steps


def _prove_gather(proof: Proof) -> None:
    """A convolution reads pixel q + δ, and each option moves one number: (2), (3), (4)."""
    index = OUTPUT * STRIDE + TAP * DILATION  # into the padded image
    target = OUTPUT * STRIDE + offset(TAP, DILATION, LOW)
    proof.check(
        "index o s + j r of the padded image is the position q + δ, the first pixel at 0",
        identical(index - LOW, target),
        equation=2,
    )
    tap = offset(TAP, DILATION, LOW)
    proof.check(
        "neighbouring queries are s apart, neighbouring offsets r apart",
        identical((OUTPUT + 1) * STRIDE - OUTPUT * STRIDE, STRIDE)
        and identical(offset(TAP + 1, DILATION, LOW) - tap, DILATION),
        equation=3,
    )
    proof.check(
        "padding by c more moves every offset by -c",
        identical(offset(TAP, DILATION, LOW + C) - tap, -C),
        equation=3,
    )
    proof.check(
        "the offsets do not depend on the stride, nor the queries on kernel, dilation and padding",
        tap.free_symbols == {TAP, DILATION, LOW}
        and (OUTPUT * STRIDE).free_symbols == {OUTPUT, STRIDE},
        equation=3,
    )
    proof.check(
        "output o at stride s has the targets of output o s at stride 1",
        identical(target, target.subs({STRIDE: 1, OUTPUT: OUTPUT * STRIDE}, simultaneous=True)),
        equation=4,
    )


def _prove_count(proof: Proof) -> None:
    """The outputs are the queries whose window fits: (5), (6)."""
    first, between = sp.symbols("j_0 j_1", integer=True, nonnegative=True)  # k - 1 = j_0 + j_1
    tap = offset(first, DILATION, LOW)
    proof.check(
        "every offset lies between those of the first and of the last index",
        nonnegative(tap - offset(sp.Integer(0), DILATION, LOW))
        and nonnegative(offset(first + between, DILATION, LOW) - tap),
        equation=5,
    )
    query = C * STRIDE  # o = c >= 0
    proof.check(
        "no target of an output o >= 0 stands before the padded image, which begins at -p_-",
        nonnegative(query + offset(sp.Integer(0), DILATION, LOW) - (-LOW)),
        equation=5,
    )
    size, reach = sp.symbols("n R", integer=True)  # R = r (k - 1)
    room = room_of(size, LOW, HIGH, reach)
    proof.check(
        "the last target of o is within the padded image just if o s <= n + p_- + p_+ - R - 1",
        identical((size - 1 + HIGH) - (OUTPUT * STRIDE + reach - LOW), room - OUTPUT * STRIDE),
        equation=5,
    )
    # room = s a + b with 0 <= b < s, that is s = b + 1 + c
    a, b = sp.symbols("a b", integer=True, nonnegative=True)
    stride = b + 1 + C
    proof.check(
        "room s a + b, 0 <= b < s: output a - m fits, m >= 0",
        nonnegative((stride * a + b) - stride * (a - M)),
        equation=6,
    )
    proof.check(
        "output a + 1 + m does not",
        positive(stride * (a + 1 + M) - (stride * a + b)),
        equation=6,
    )
    proof.check(
        "room below 0: no output o >= 0 fits",
        positive(STRIDE * C - (-1 - M)),
        equation=6,
    )
    proof.check(
        "counted one by one, all sizes to 5, kernels to 4, strides to 3, dilations and paddings",
        all(
            outputs(n, k, s, r, low, high)
            == sum(o * s + r * (k - 1) - low <= n - 1 + high for o in range(n + low + high))
            for n, k, s, r in product(range(1, 6), range(1, 5), (1, 2, 3), (1, 2))
            for low, high in product((0, 1, 2), repeat=2)
        ),
        equation=6,
    )


def room_of(size: sp.Expr, low: sp.Expr, high: sp.Expr, reach: sp.Expr) -> sp.Expr:
    """N of (5): output o fits just if o s is at most this; at stride 1 there are N + 1 outputs."""
    return size + low + high - reach - 1


def _prove_named_padding(proof: Proof) -> None:
    """What "valid" and "same" stand for: (7)."""
    # an even reach 2m and an odd one 2m + 1; padded by floor(R/2) and ceil(R/2)
    for reach, low, high, name in ((2 * M, M, M, "even"), (2 * M + 1, M, M + 1, "odd")):
        half = sp.floor(reach / sp.Integer(2))
        size = C + 1
        proof.check(
            f'"same", reach {name}: floor(R/2) before, the rest after, at stride 1 n outputs',
            identical(half, low)
            and identical(reach - half, high)
            and identical(room_of(size, low, high, reach) + 1, size),
            equation=7,
        )
        proof.check(
            f'"same", reach {name}: the offsets run from -floor(R/2) to ceil(R/2)',
            identical(0 - low, -half) and identical(reach - low, sp.ceiling(reach / sp.Integer(2))),
            equation=7,
        )
    size, reach = sp.symbols("n R", integer=True)
    none = sp.Integer(0)
    last = offset(TAP, DILATION, none).subs(TAP * DILATION, reach)  # R = r (k - 1), j = k - 1
    proof.check(
        '"valid": with padding 0 the offsets run from 0 to R',
        identical(offset(none, DILATION, none), 0) and identical(last, reach),
        equation=7,
    )
    proof.check(
        '"valid": with padding 0 the room is n - R - 1, so that n - R outputs are left at stride 1',
        identical(room_of(size, none, none, reach), size - reach - 1),
        equation=7,
    )


def replicated(t: sp.Expr, n: sp.Expr) -> sp.Expr:
    """The coordinatewise clamp."""
    return sp.Min(sp.Max(t, 0), n - 1)


def reflected(t: sp.Expr, n: sp.Expr) -> sp.Expr:
    """The mirror images about the first and the last pixel."""
    return (n - 1) - sp.Abs((n - 1) - sp.Abs(t))


def wrapped(t: sp.Expr, n: sp.Expr) -> sp.Expr:
    """The remainder modulo the size."""
    return sp.Mod(t, n)


def _prove_borders(proof: Proof) -> None:
    """The maps of targets that `padding_mode` names: (8)."""
    # A target t of an axis of n pixels, inside: t = c, n = c + 1 + m. Beyond by c + 1 steps: before
    # the first pixel t = -(c + 1), after the last t = n + c.
    inside = C + 1 + M
    proof.check(
        "inside the image each of the three maps is the identity",
        identical(replicated(C, inside), C)
        and identical(reflected(C, inside), C)
        and identical(wrapped(C, inside), C),
        equation=8,
    )
    size = M + 1
    proof.check(
        "replicate: the first pixel before it, the last after it, at every distance",
        identical(replicated(-(C + 1), size), 0)
        and identical(replicated(size + C, size), size - 1),
        equation=8,
    )
    enough = C + 2 + M  # n >= (c + 1) + 1: the distance is less than n
    proof.check(
        "reflect, distance c + 1 < n: pixel c + 1 before it, pixel n - 2 - c after it",
        identical(reflected(-(C + 1), enough), C + 1)
        and identical(reflected(enough + C, enough), enough - 2 - C),
        equation=8,
    )
    turn = C + 1 + M  # n >= c + 1
    proof.check(
        "circular, distance c + 1 <= n: pixel n - 1 - c before it, pixel c after it",
        identical(wrapped(-(C + 1), turn), turn - 1 - C) and identical(wrapped(turn + C, turn), C),
        equation=8,
    )


def symbol(name: str) -> sp.Symbol:
    """An element of the free ring."""
    return sp.Symbol(name, commutative=False)


def matrix(name: str, rows: int, columns: int) -> sp.Matrix:
    """A matrix of distinct elements of the free ring."""
    return sp.Matrix(rows, columns, lambda i, j: symbol(f"{name}_{i}{j}"))


def blocks(count: int, rows: int, columns: int) -> list[sp.Matrix]:
    """The matrices of so many groups."""
    return [matrix(f"w{g}", rows, columns) for g in range(count)]


def _prove_blocks(proof: Proof) -> None:
    """Groups are blocks, and the bias is b_out: (9)."""
    for count in (1, 2, 3):
        proof.check(
            f"{count} groups side by side are one block-diagonal matrix, blocks up to 2 x 2",
            all(
                identical(
                    matrix("x", 1, count * rows) * sp.diag(*blocks(count, rows, columns)),
                    sp.Matrix.hstack(
                        *(
                            matrix("x", 1, count * rows)[:, g * rows : (g + 1) * rows] * block
                            for g, block in enumerate(blocks(count, rows, columns))
                        )
                    ),
                )
                for rows, columns in product((1, 2), repeat=2)
            ),
            equation=9,
        )
        rows, columns = 2, 3
        dense = sp.diag(*blocks(count, rows, columns))
        proof.check(
            f"{count} groups: channels c and m meet just if floor(c / rows) = floor(m / columns)",
            all(
                (dense[c, m] != 0) is (c // rows == m // columns)
                for c, m in product(range(count * rows), range(count * columns))
            ),
            equation=9,
        )
    proof.check(
        "an image of zeros gives the bias",
        identical(sp.zeros(1, 2) * matrix("w", 2, 2) + matrix("b", 1, 2), matrix("b", 1, 2)),
        equation=9,
    )


def _prove_scatter(proof: Proof) -> None:
    """A transposed convolution gathers along negated offsets: (10), (11)."""
    pixel, output = PIXEL * STRIDE, PIXEL * STRIDE + TAP * DILATION - PADDING
    proof.check(
        "pixel i s meets output i s + j r - p along the offset k - q = p - j r",
        identical(pixel - output, transposed_offset(TAP, DILATION, PADDING)),
        equation=10,
    )
    proof.check(
        "kernel index by kernel index these are the convolution's offsets, negated",
        identical(transposed_offset(TAP, DILATION, PADDING), -offset(TAP, DILATION, PADDING)),
        equation=10,
    )
    proof.check(
        "pixels i + 1 + m and i stand at different positions: one pixel at most is on a target",
        positive((PIXEL + 1 + M) * STRIDE - PIXEL * STRIDE),
        equation=11,
    )
    image = [symbol(f"x{i}") for i in range(3)]
    for spacing in (1, 2, 3):
        seen = dict(zip(range(0, 3 * spacing, spacing), image, strict=True))
        proof.check(
            f"a head reads the pixel on its target, and off the keys the sink, spacing {spacing}",
            all(
                identical(attend(target, spacing, image), seen.get(target, 0))
                for target in range(-2, 3 * spacing + 2)
            ),
            equation=11,
        )


def attend(target: int, spacing: int, image: Sequence[sp.Symbol]) -> sp.Expr:
    """The row of a head that is one-hot on its target or on the sink, times the values."""
    on_keys = [sp.KroneckerDelta(i * spacing, target) for i in range(len(image))]
    row = sp.Matrix([[*on_keys, 1 - sum(on_keys)]])
    return (row * sp.Matrix([*image, 0]))[0]


def _prove_transposed_sizes(proof: Proof) -> None:
    """How many outputs there are, and which of them no pixel reaches: (12), (13), (14)."""
    size, reach = sp.symbols("n R", integer=True)
    count = (size - 1) * STRIDE + reach + 1 - 2 * PADDING + E
    far = (size - 1) * STRIDE  # the last pixel
    low, high = reach - PADDING, reach - PADDING + E
    proof.check(
        "the first target is p - R, the last (n - 1) s + R - p + e",
        identical(0 + (PADDING - reach), -low) and identical(count - 1 + PADDING, far + high),
        equation=12,
    )
    proof.check(
        "stride 1 on the zero-stuffed image of (n - 1) s + 1 positions: the count of (6)",
        identical((far + 1) + low + high - reach, count),
        equation=12,
    )
    kernel = sp.Symbol("k", integer=True)
    formula = transposed_outputs(size, kernel, STRIDE, DILATION, PADDING, E)
    proof.check(
        "with R = r (k - 1) this is the formula of torch",
        identical(formula, count.subs(reach, DILATION * (kernel - 1))),
        equation=12,
    )
    # Output o is reached by pixel i and index j just if o + p = i s + j r.
    proof.check(
        "the c-th output beyond the smallest count lies c - p beyond the last place reached",
        identical((count.subs(E, 0) - 1 + C) + PADDING - (far + reach), C - PADDING),
        equation=13,
    )
    # Dilation 1 and k <= s: write o + p = s a + b with 0 <= b < s, that is s = b + 1 + c.
    a, b = sp.symbols("a b", integer=True, nonnegative=True)
    stride = b + 1 + C
    proof.check(
        "o + p = s a + b, dilation 1: pixel a needs index b, pixel a + 1 + m a negative one",
        identical(stride * a + b - stride * a, b)
        and positive(-(stride * a + b - stride * (a + 1 + M))),
        equation=13,
    )
    proof.check(
        "pixel a - 1 - m needs index s or more, which is at least k",
        nonnegative((stride * a + b - stride * (a - 1 - M)) - stride),
        equation=13,
    )
    length = sp.Symbol("L", integer=True)
    smallest = count.subs(E, 0)
    proof.check(
        "L outputs: the convolution from L pixels has room s (n - 1) + (L - smallest)",
        identical(length + 2 * PADDING - reach - 1, STRIDE * (size - 1) + (length - smallest)),
        equation=14,
    )
    extra, rest, far_off = sp.symbols("e' b c'", integer=True, nonnegative=True)
    stride = extra + 1 + rest
    proof.check(
        "room s (n - 1) + e, 0 <= e < s: output n - 1 fits and output n does not",
        nonnegative((stride * (size - 1) + extra) - stride * (size - 1))
        and positive(stride * size - (stride * (size - 1) + extra)),
        equation=14,
    )
    proof.check(
        "e < 0: output n - 1 does not fit; e >= s: output n does",
        positive(STRIDE * (size - 1) - (STRIDE * (size - 1) - 1 - far_off))
        and nonnegative((STRIDE * (size - 1) + STRIDE + far_off) - STRIDE * size),
        equation=14,
    )


# Explicit sums, on boxes of any dimension ---------------------------------------------------------


class Box:
    """A convolution with zeros beyond the border, given by its options on every axis."""

    def __init__(
        self,
        sizes: Point,
        kernel: Point,
        stride: Point,
        dilation: Point,
        padding: Point,
    ) -> None:
        """Read the options, one number for every axis."""
        self.sizes, self.kernel = sizes, kernel
        self.stride, self.dilation, self.padding = stride, dilation, padding
        axes = zip(sizes, kernel, stride, dilation, padding, strict=True)
        self.coarse = tuple(outputs(n, k, s, r, p, p) for n, k, s, r, p in axes)

    def fine(self) -> list[Point]:
        """The pixels of the convolution, the outputs of its transpose."""
        return list(product(*map(range, self.sizes)))

    def outputs(self) -> list[Point]:
        """The outputs of the convolution, the pixels of its transpose."""
        return list(product(*map(range, self.coarse)))

    def taps(self) -> list[Point]:
        """The kernel indices."""
        return list(product(*map(range, self.kernel)))

    def gathered(self) -> Counter[tuple[Point, Point, Point]]:
        """(pixel, tap, output) of the convolution: index o s + j r of the padded image."""
        fine = set(self.fine())
        found: Counter[tuple[Point, Point, Point]] = Counter()
        for o, j in product(self.outputs(), self.taps()):
            axes = zip(o, self.stride, j, self.dilation, self.padding, strict=True)
            pixel = tuple(a * s + b * r - p for a, s, b, r, p in axes)
            found[pixel, j, o] += pixel in fine
        return +found

    def scattered(self) -> Counter[tuple[Point, Point, Point]]:
        """(output, tap, pixel) of the transpose: i s + j r on the canvas, cropped by p."""
        fine = set(self.fine())
        found: Counter[tuple[Point, Point, Point]] = Counter()
        for i, j in product(self.outputs(), self.taps()):
            axes = zip(i, self.stride, j, self.dilation, strict=True)
            canvas = [a * s + b * r for a, s, b, r in axes]
            output = tuple(c - p for c, p in zip(canvas, self.padding, strict=True))
            found[output, j, i] += output in fine
        return +found

    def attended(self) -> Counter[tuple[Point, Point, Point]]:
        """(output, tap, pixel) of the transpose: the pixel at q + (p - j r), if there is one."""
        coarse = set(self.outputs())
        found: Counter[tuple[Point, Point, Point]] = Counter()
        for q, j in product(self.fine(), self.taps()):
            axes = zip(q, j, self.dilation, self.padding, strict=True)
            target = [a + transposed_offset(b, r, p) for a, b, r, p in axes]
            held = all(t % s == 0 for t, s in zip(target, self.stride, strict=True))
            pixel = tuple(t // s for t, s in zip(target, self.stride, strict=True))
            found[q, j, pixel] += held and pixel in coarse
        return +found


ONE_AXIS = [
    Box((n,), (k,), (s,), (r,), (p,))
    for n, k, s, r, p in product((1, 2, 4, 5), (1, 2, 3), (1, 2, 3), (1, 2), (0, 1, 2))
    if n + 2 * p > r * (k - 1)
]
MORE_AXES = [
    Box((3, 2), (2, 2), (2, 1), (1, 1), (1, 0)),
    Box((2, 4), (1, 2), (1, 3), (2, 2), (1, 1)),
    Box((2, 2, 3), (2, 1, 2), (1, 2, 2), (1, 1, 2), (0, 1, 1)),
]


def _prove_pairs(proof: Proof) -> None:
    """The pairs of a key and a query are the same from both ends: (15), (16)."""
    key, query, tap = sp.symbols("k q δ", integer=True)
    proof.check(
        "k = q + δ just if q = k + (-δ): key and query change places, the offset its sign",
        identical((key - query) - tap, -((query - key) - (-tap))),
        equation=15,
    )
    rows, columns = 3, 3
    terms = matrix("f", rows, columns)
    total = sum(terms, sp.Integer(0))
    proof.check(
        "a finite double sum has one value in every order of its terms, 2 x 2 in full",
        all(
            identical(sum(order, sp.Integer(0)), sum(terms[:2, :2], sp.Integer(0)))
            for order in permutations(terms[:2, :2])
        )
        and identical(sum(terms.T, sp.Integer(0)), total),
        equation=15,
    )
    proof.check(
        "for one axis, all options up to 3: convolution and transpose join the same pairs",
        all(box.gathered() == box.scattered() == box.attended() for box in ONE_AXIS),
        equation=16,
    )
    proof.check(
        "for two and three axes, unequal options: convolution and transpose join the same pairs",
        all(box.gathered() == box.scattered() == box.attended() for box in MORE_AXES),
        equation=16,
    )


Entries = Mapping[Point, sp.Matrix]


def convolved(box: Box, pixels: Entries, weights: Entries, width: int) -> dict[Point, sp.Matrix]:
    """The convolution of rows: sums of X W over the pairs that a query gathers along."""
    y = {o: sp.zeros(1, width) for o in box.outputs()}
    for (i, j, o), times in box.gathered().items():
        y[o] += times * pixels[i] * weights[j]
    return y


def attended(box: Box, pixels: Entries, weights: Entries, width: int) -> dict[Point, sp.Matrix]:
    """The transpose acting on columns from the left: sums of W Y along the negated offsets."""
    x = {q: sp.zeros(width, 1) for q in box.fine()}
    for (q, j, i), times in box.attended().items():
        x[q] += times * weights[j] * pixels[i]
    return x


def paired(left: Entries, right: Entries) -> sp.Expr:
    """The sum of the products of rows and columns at the same place."""
    return sum((left[at] * right[at])[0] for at in left)


def _adjoint(box: Box, d_in: int, d_out: int, weight: Callable[[str], sp.Matrix]) -> bool:
    """Whether <conv(X), Y> = <X, conv_transpose(Y)>, all entries in the free ring."""

    def named(letter: str, points: Sequence[Point], rows: int, columns: int) -> Entries:
        return {at: matrix(letter + "_".join(map(str, at)) + "_", rows, columns) for at in points}

    x, y = named("x", box.fine(), 1, d_in), named("y", box.outputs(), d_out, 1)
    w = {j: weight("w" + "_".join(map(str, j)) + "_") for j in box.taps()}
    forward = paired(convolved(box, x, w, d_out), y)
    backward = paired(x, attended(box, y, w, d_in))
    return identical(forward, backward) and forward != 0


def _prove_adjoint(proof: Proof) -> None:
    """The two inner products are one sum over pairs: (17)."""
    one_axis = [
        Box((4,), (3,), (2,), (1,), (1,)),
        Box((5,), (2,), (1,), (2,), (2,)),
        Box((3,), (1,), (3,), (1,), (0,)),
    ]
    for box, size in [*((box, 2) for box in one_axis), *((box, 1) for box in MORE_AXES)]:
        proof.check(
            f"d = {len(box.sizes)}, kernel {box.kernel}, stride {box.stride}, dilation "
            f"{box.dilation}, padding {box.padding}: equal in the free ring, {size} x {size}",
            _adjoint(box, size, size, partial(matrix, rows=size, columns=size)),
            equation=17,
        )
    proof.check(
        "with two groups, 2 x 2 matrices of 1 x 1 blocks",
        _adjoint(one_axis[0], 2, 2, lambda name: sp.diag(symbol(f"{name}a"), symbol(f"{name}b"))),
        equation=17,
    )
    weight, value = sp.Matrix(2, 2, sp.symbols("w:4")), sp.Matrix(2, 1, sp.symbols("y:2"))
    proof.check(
        "where entries commute, W times a column is, as a row, the row times the transpose of W",
        identical((weight * value).T, value.T * weight.T),
        equation=17,
    )


# Average pooling ----------------------------------------------------------------------------------


def _prove_pooling(proof: Proof) -> None:
    """A uniform head, its queries, and the keys that share: (18), (19), (20)."""
    first, second = sp.symbols("S_1 S_2", integer=True, positive=True)
    share = sp.exp(0) / (first * sp.exp(0) + second * sp.exp(-sp.oo))
    proof.check(
        "S_1 keys of score 0 and S_2 of score minus infinity: each of the former has 1 / S_1",
        equal(share, 1 / first) and identical(first * share, 1),
        equation=18,
    )
    proof.check(
        "a window is a product of intervals: shares multiply as numbers of keys do",
        equal((1 / first) * (1 / second), 1 / (first * second)),
        equation=18,
    )
    # ceil_mode: room = n + 2p - w = s a - b with 0 <= b < s, so that s = b + 1 + c
    size, padding = sp.symbols("n p", integer=True)
    a = sp.Symbol("a", integer=True)
    b, slack = sp.symbols("b c'", integer=True, nonnegative=True)
    stride = b + 1 + C
    room = stride * a - b
    proof.check(
        "room s a - b, 0 <= b < s: the window before output a - m leaves some of the padded image",
        positive(room - (a - M - 1) * stride),
        equation=19,
    )
    proof.check(
        "the window before output a + 1 + m leaves none of it",
        nonnegative((a + M) * stride - room),
        equation=19,
    )
    proof.check(
        "output o begins in the padding after the image just if o s >= n + p",
        identical((OUTPUT * STRIDE - padding) - size, OUTPUT * STRIDE - (size + padding)),
        equation=19,
    )
    proof.check(
        "output a - 1 begins in the image or before, for w >= p: torch drops one output at most",
        # n + p = room + w - p, and w = p + c'
        positive((room + (padding + slack) - padding) - (a - 1) * stride),
        equation=19,
    )
    proof.check(
        "counted one by one, all sizes to 5, windows to 5, strides to 3",
        all(
            pooled_outputs(n, w, s, p, ceil=ceil)
            == sum(
                (o - 1) * s < n + 2 * p - w and o * s < n + p if ceil else o * s + w <= n + 2 * p
                for o in range(n + 2 * p + 1)
            )
            for n, w, s, ceil in product(range(1, 6), range(1, 6), (1, 2, 3), (False, True))
            for p in range(w // 2 + 1)
        ),
        equation=19,
    )
    # 2p <= w, written w = 2p + c'; a padding p = m + 1, or none
    for p, w, name in ((M + 1, 2 * (M + 1) + slack, "p >= 1"), (0, 1 + slack, "p = 0")):
        last = size + 2 * p - w - p  # the last query of a window within the padded image
        proof.check(
            f"every window holds a pixel, {name}: the first ends at pixel 0 or later",
            nonnegative(sp.sympify(-p + w - 1)),
            equation=20,
        )
        proof.check(
            f"every window holds a pixel, {name}: the last begins at pixel n - 1 or before",
            nonnegative(size - 1 - last),
            equation=20,
        )
    divisor, volume = sp.symbols("D V", positive=True)
    proof.check(
        "the whole window shares, times V / D: each key counts 1 / D",
        equal((1 / volume) * (volume / divisor), 1 / divisor),
        equation=20,
    )
