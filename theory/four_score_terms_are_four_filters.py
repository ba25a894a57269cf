"""T24. Four score terms are four filters.

New here. The page `docs/theorems/four_score_terms_are_four_filters.md` numbers the equations.
Exponentials of scores, pixels and matrices are symbols; what ranges over all grids is searched on
small ones, and the page has the argument for the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations, product

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive

__all__ = ["THEOREM", "box_is_nearest", "commutes_replicated", "commutes_zeros", "prove"]

THEOREM = Theorem(
    slug="four_score_terms_are_four_filters",
    number="T24",
    source="",
    title="Four score terms are four filters",
    gist=(
        "content makes deformable and normalised convolution, non-local means and the bilateral "
        "filter; what commutes with shifts, and exactly where"
    ),
    claim=(
        "Each of the four score terms of a head is a classical filter. Positions alone are a "
        "convolution; queries with positions, beside it, a deformable convolution that takes the "
        "nearest pixel; a bias of the keys, beside it, a normalised convolution; queries with keys "
        "and such a bias, non-local means, and beside positions the bilateral filter. Each of the "
        "last four is no affine map of its tokens, which every layer of positions alone is, so "
        "that each adds something. Scores of displacement and content commute with every shift of "
        "a torus. On a box a saturated head with zeros beyond the edge commutes with a shift s at "
        "a query q, for all images and whatever is shifted in, if and only if q + Δ and q − s + Δ "
        "are both keys or both not; with the edge replicated, if and only if both are in range on "
        "every axis along which s moves. Without positions a layer commutes with every "
        "permutation. Positions of a layer without content may be absolute and commute with all "
        "shifts, namely if and only if its weights are circulant."
    ),
    hypotheses=(
        "weights are the softmax of the scores, over the reals; keys are a box, or all of a torus",
        "for the deformable convolution: offsets p stand in channels of the query's token",
        "for non-local means: tokens are patches beside their squared norm",
        "where a layer commutes only if something holds: its heads' matrices are not zero, and "
        "independent where two heads may see one pixel",
    ),
    notation={
        "X_q, p_q, z_q, c_q": "a token; of it the offset, the patch, the certainty",
        "δ = k − q, Δ": "displacement, and the head's own shift",
        "α, h, κ": "sharpness, strength of non-local means, factor of the certainty",
        "T_s": "the shift of an image by s: (T_s X)_k = X_{k − s}",
        "V_h = W_val^h W_out^h": "what head h applies",
        "K": "the keys",
        "r, d": "half side of a box of offsets, and its dimension",
    },
    proof_idea=(
        "Complete squares: what depends on the query alone is ignored by softmax, what depends on "
        "the key alone is a bias. A sum over all keys of a group may be shifted. Where a shifted "
        "image and its original see different pixels, an image tells them apart."
    ),
    references=(
        "arXiv:1911.03584, equation 8",
        "arXiv:1711.07971, attention as non-local means",
        "arXiv:1703.06211, deformable convolution",
        "arXiv:2506.10371, non-local means and bilateral filter as attention",
    ),
    objects=("constructions.MultiHeadSelfAttention", "constructions.attention_from_conv"),
)

Point = tuple[int, ...]
ALPHA = sp.Symbol("alpha", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T24: equations (2) to (19) of its page."""
    proof = Proof()
    _prove_deformable(proof)
    _prove_certainty(proof)
    _prove_content(proof)
    _prove_strictness(proof)
    _prove_torus(proof)
    _prove_box(proof)
    _prove_permutations(proof)
    _prove_reach(proof)
    _prove_top_k(proof)
    _prove_family(proof)
    return proof.steps


def _prove_deformable(proof: Proof) -> None:
    """Query and position: a shift of its own for each pixel: (2) to (4)."""
    for d in (1, 2, 3):
        delta, shift, offset = (sp.Matrix(sp.symbols(f"{n}:{d}", real=True)) for n in "dDp")
        target = shift + offset
        proof.check(
            f"-α |δ - Δ|^2 + 2 α p.δ is -α |δ - Δ - p|^2 and a number of the query, d = {d}",
            identical(
                -ALPHA * (delta - shift).dot(delta - shift) + 2 * ALPHA * offset.dot(delta),
                -ALPHA * (delta - target).dot(delta - target)
                + ALPHA * target.dot(target)
                - ALPHA * shift.dot(shift),
            ),
            equation=2,
        )
    j = sp.Symbol("j", integer=True, nonnegative=True)
    f, far = sp.symbols("f e", nonnegative=True)
    proof.check(
        "a key n steps off the nearest, itself f <= 1/2 off the target: n^2 - 2 |n| f >= 1 - 2 f "
        "for |n| = 1 + j, f = 1/2 - g",
        nonnegative((1 + j) ** 2 - 2 * (1 + j) * (sp.Rational(1, 2) - f) - 2 * f),
        equation=3,
    )
    proof.check(
        "a target e beyond the last key: n^2 + 2 |n| e >= 1 for |n| = 1 + j",
        nonnegative((1 + j) ** 2 + 2 * (1 + j) * far - 1),
        equation=3,
    )
    z, more = sp.symbols("z m", positive=True)
    quarter = sp.Rational(1, 4)
    total = 1 + z + z**3
    scores = [(k - quarter) ** 2 - quarter**2 for k in (-1, 1)]
    proof.check(
        "keys -1, 0, 1 and a target at 1/4: weights z^3, 1, z over their sum, z = e^(-α/2)",
        scores == [sp.Rational(3, 2), sp.Rational(1, 2)],
        equation=4,
    )
    proof.check(
        "z = 1/4 + m: the key -1, which bilinear interpolation leaves out, has 1/81 or more",
        nonnegative((81 * z**3 - total).subs(z, quarter + more)),
        equation=4,
    )
    proof.check(
        "z <= 1/4: the key 1, due 1/4, has at most 16/81, and so more than 1/81 too little",
        identical((z / total).subs(z, quarter), sp.Rational(16, 81))
        and equal(sp.diff(z / total, z), (1 - 2 * z**3) / total**2)
        and bool(sp.Rational(16, 81) + sp.Rational(1, 81) < quarter)
        and bool(2 * quarter**3 < 1),
        equation=4,
    )


def _prove_certainty(proof: Proof) -> None:
    """A bias of the keys is a certainty: (5), (6)."""
    score, bias = sp.symbols("s b", real=True)
    proof.check(
        "e^(s + b) = e^s e^b, in numerator and denominator of the softmax",
        identical(sp.exp(score + bias), sp.exp(score) * sp.exp(bias)),
        equation=5,
    )
    e0, e1, c0, c1, x0, x1 = sp.symbols("e0 e1 c0 c1 x0 x1", positive=True)
    total = e0 * c0 + e1 * c1
    proof.check(
        "two keys, one more being the same step: the quotient of two filtered images",
        equal(e0 * c0 / total * x0 + e1 * c1 / total * x1, (e0 * c0 * x0 + e1 * c1 * x1) / total),
        equation=5,
    )
    kappa, low, more = sp.symbols("kappa c m", positive=True)
    proof.check(
        "certainties κ c: the largest leads any smaller one by κ times the difference",
        identical(kappa * (low + more) - kappa * low, kappa * more),
        equation=6,
    )


def _prove_content(proof: Proof) -> None:
    """Query and key with a bias: a squared distance of patches: (7), (8)."""
    h, spatial, tonal = sp.symbols("h s t", positive=True)
    for m in (1, 2, 3):
        query, key = (sp.Matrix(sp.symbols(f"{n}:{m}", real=True)) for n in "zy")
        difference = query - key
        proof.check(
            f"2 z_q.z_k/h^2 - |z_k|^2/h^2 is -|z_q - z_k|^2/h^2 and a number of the query, {m} "
            "entries",
            identical(
                (2 * query.dot(key) - key.dot(key)) / h**2,
                -difference.dot(difference) / h**2 + query.dot(query) / h**2,
            ),
            equation=7,
        )
    distance, apart = sp.symbols("D E", nonnegative=True)
    proof.check(
        "strength √2 t, sharpness 1/(2 s^2): the two Gaussians of a bilateral filter",
        identical(
            sp.exp(-distance / (2 * spatial**2) - apart / (sp.sqrt(2) * tonal) ** 2),
            sp.exp(-distance / (2 * spatial**2)) * sp.exp(-apart / (2 * tonal**2)),
        ),
        equation=8,
    )


def _prove_strictness(proof: Proof) -> None:
    """What positions alone compute is affine, and none of the filters is: (9) to (11)."""
    weights, matrix, bias = sp.symbols("a:3"), sp.Symbol("V"), sp.Symbol("b")
    one, other = sp.symbols("x:3"), sp.symbols("y:3")

    def layer(image: Sequence[sp.Expr]) -> sp.Expr:
        return bias + sum(a * x * matrix for a, x in zip(weights, image, strict=True))

    both = [x + y for x, y in zip(one, other, strict=True)]
    zero = [sp.Integer(0)] * 3
    proof.check(
        "weights that do not depend on the image: f(x + y) + f(0) = f(x) + f(y)",
        identical(layer(both) + layer(zero), layer(one) + layer(other)),
        equation=9,
    )

    def nearest(pixels: Sequence[int], offset: int) -> int:
        return pixels[offset]

    proof.check(
        "two pixels, offset at the first: (0, 1) with 0 and (0, 0) with 1 give 0, their sum 1",
        (nearest((0, 1), 0), nearest((0, 0), 1), nearest((0, 1), 1)) == (0, 0, 1)
        and nearest((0, 0), 0) == 0,
        equation=10,
    )
    factor, strength, value = sp.symbols("g h x", positive=True)
    certainty = sp.Symbol("s", real=True)
    odds = factor * sp.exp(certainty)
    proof.check(
        "pixels 0 and 1, certainties 1 and e^s: the output rises with s and stays between 0 and 1",
        equal(sp.diff(odds / (1 + odds), certainty), odds / (1 + odds) ** 2)
        and positive(odds)
        and equal(1 - odds / (1 + odds), 1 / (1 + odds)),
        equation=11,
    )
    alike = factor * sp.exp(-(value**2) / strength**2)
    output = value * alike / (1 + alike)
    proof.check(
        "pixels 0 and x: the output at the first is positive and tends to 0 as x grows, which no "
        "a + b x + c x^2 does",
        output.is_positive is True and sp.limit(output, value, sp.oo) == 0,
        equation=11,
    )


def _on_torus(shape: Point, point: Point, by: Point) -> Point:
    """point - by, round the torus."""
    return tuple((p - b) % n for p, b, n in zip(point, by, shape, strict=True))


def _torus_output(
    shape: Point, image: Mapping[Point, sp.Expr], q: Point
) -> tuple[sp.Expr, sp.Expr]:
    """Numerator and denominator at a query, a term E(δ, X_q, X_k) for each key."""
    kernel = sp.Function("E")
    terms = {k: kernel(*_on_torus(shape, k, q), image[q], x) for k, x in image.items()}
    return sum(terms[k] * x for k, x in image.items()), sum(terms.values())


def _prove_torus(proof: Proof) -> None:
    """Displacement and content: every shift of a torus: (12), (13)."""
    for shape in ((2,), (3,), (2, 2)):
        points = list(product(*map(range, shape)))
        pixels = {k: sp.Symbol("x" + "".join(map(str, k))) for k in points}
        shifted = {s: {k: pixels[_on_torus(shape, k, s)] for k in points} for s in points}
        proof.check(
            f"the torus {shape}: at every query the shifted image has the shifted output, all "
            "shifts, any score of displacement, query and key",
            all(
                identical(one, other)
                for s in points
                for q in points
                for one, other in zip(
                    _torus_output(shape, shifted[s], q),
                    _torus_output(shape, pixels, _on_torus(shape, q, s)),
                    strict=True,
                )
            ),
            equation=12,
        )
    for n in (2, 3, 4):
        matrix = sp.Matrix(n, n, lambda q, k: sp.Symbol(f"a{q}{k}"))
        shift = sp.Matrix(n, n, lambda q, k, n=n: sp.Integer((q - 1) % n == k))
        back = shift.T
        proof.check(
            f"{n} pixels round a circle: T A T^-1 has the entries A_(q-1, k-1), so A commutes with "
            "all shifts if and only if they are A_(q, k)",
            identical(
                shift * matrix * back,
                sp.Matrix(n, n, lambda q, k, m=matrix, n=n: m[(q - 1) % n, (k - 1) % n]),
            ),
            equation=13,
        )


def commutes_zeros(n: Sequence[int], q: Point, s: Point, shift: Point) -> bool:
    """Whether a saturated head with zeros beyond a box of n keys commutes with a shift: (14)."""
    target = tuple(a + b for a, b in zip(q, shift, strict=True))
    before = tuple(a - b for a, b in zip(target, s, strict=True))
    return _inside(target, n) == _inside(before, n)


def commutes_replicated(n: Sequence[int], q: Point, s: Point, shift: Point) -> bool:
    """Whether a saturated head that replicates the edge commutes with a shift: (15)."""
    axes = zip(n, q, s, shift, strict=True)
    return all(
        move == 0 or (0 <= i + d < size and 0 <= i + d - move < size) for size, i, move, d in axes
    )


def _inside(point: Point, n: Sequence[int]) -> bool:
    return all(0 <= p < size for p, size in zip(point, n, strict=True))


def _prove_box(proof: Proof) -> None:
    """The border's exact extent: (14), (15)."""
    for shape, reach in (((1,), 3), ((2,), 4), ((4,), 6), ((2, 3), 3)):
        steps = range(-reach, reach + 1)
        cases = [
            (q, s, shift)
            for q in product(*map(range, shape))
            for s in product(steps, repeat=len(shape))
            if _inside(tuple(a - b for a, b in zip(q, s, strict=True)), shape)
            for shift in product(steps, repeat=len(shape))
        ]
        for name, seen, rule, equation in (
            ("zeros", _seen_zeros, commutes_zeros, 14),
            ("the edge replicated", _seen_replicated, commutes_replicated, 15),
        ):
            proof.check(
                f"a box {shape}, {name}: what is seen of the shifted image is what was seen, for "
                f"all images and what is shifted in, just where the rule says; {len(cases)} cases",
                all(
                    (
                        _of_shifted(seen(shape, q, shift), s, shape)
                        == _before(seen, shape, q, s, shift)
                    )
                    is rule(shape, q, s, shift)
                    for q, s, shift in cases
                ),
                equation=equation,
            )


def _seen_zeros(n: Sequence[int], q: Point, shift: Point) -> Point | None:
    """The pixel that a head sees; None for zero."""
    target = tuple(a + b for a, b in zip(q, shift, strict=True))
    return target if _inside(target, n) else None


def _seen_replicated(n: Sequence[int], q: Point, shift: Point) -> Point | None:
    axes = zip(q, shift, n, strict=True)
    return tuple(min(max(a + b, 0), size - 1) for a, b, size in axes)


def _of_shifted(pixel: Point | None, s: Point, n: Sequence[int]) -> object:
    """Where a pixel of the shifted image comes from: a pixel, None for zero, or from outside."""
    if pixel is None:
        return None
    source = tuple(a - b for a, b in zip(pixel, s, strict=True))
    return source if _inside(source, n) else ("shifted in", pixel)


def _before(
    seen: Callable[[Sequence[int], Point, Point], Point | None],
    n: Sequence[int],
    q: Point,
    s: Point,
    shift: Point,
) -> object:
    """What the head sees of the image itself at q - s."""
    return seen(n, tuple(a - b for a, b in zip(q, s, strict=True)), shift)


def _prove_permutations(proof: Proof) -> None:
    """No positions: every permutation: (16)."""
    kernel = sp.Function("E")
    pixels = sp.symbols("x:3")

    def output(q: int, image: Sequence[sp.Expr]) -> tuple[sp.Expr, sp.Expr]:
        terms = [kernel(image[q], x) for x in image]
        return sum(t * x for t, x in zip(terms, image, strict=True)), sum(terms)

    for order in permutations(range(3)):
        permuted = [pixels[i] for i in order]
        proof.check(
            f"three tokens in the order {order}: the outputs in that order",
            all(
                identical(a, b)
                for q in range(3)
                for a, b in zip(output(q, permuted), output(order[q], pixels), strict=True)
            ),
            equation=16,
        )


def _prove_reach(proof: Proof) -> None:
    """What an output depends on: (17)."""
    weights = sp.symbols("a:2", positive=True)
    matrices = sp.symbols("V:2")
    pixel, rest = sp.symbols("x R")
    output = rest + sum(a * pixel * v for a, v in zip(weights, matrices, strict=True))
    proof.check(
        "the derivative in one pixel is Σ a V over the heads: one head's is not zero if V is not",
        identical(
            sp.diff(output, pixel), sum(a * v for a, v in zip(weights, matrices, strict=True))
        )
        and positive(weights[0]),
        equation=17,
    )


def box_is_nearest(r: int, d: int) -> bool:
    """Whether the (2 r + 1)^d points of Z^d nearest to 0 are the box of half side r: (18)."""
    return d * r * r < (r + 1) ** 2


def _prove_top_k(proof: Proof) -> None:
    """The nearest keys and a box: (18)."""
    for d, most in ((1, 6), (2, 6), (3, 3)):
        for r in range(1, most + 1):
            points = list(product(range(-2 * r - 1, 2 * r + 2), repeat=d))
            inside = [p for p in points if max(map(abs, p)) <= r]
            outside = [p for p in points if max(map(abs, p)) > r]
            farthest = max(_norm(p) for p in inside)
            nearest = min(_norm(p) for p in outside)
            proof.check(
                f"d = {d}, r = {r}: a corner has d r^2, the nearest point outside (r + 1)^2",
                farthest == d * r * r
                and nearest == (r + 1) ** 2
                and (farthest < nearest) is box_is_nearest(r, d),
                equation=18,
            )


def _norm(point: Iterable[int]) -> int:
    return sum(c * c for c in point)


def _prove_family(proof: Proof) -> None:
    """Every matrix of pixels to pixels is two heads with a sink: (19)."""
    plus, minus, scale = sp.symbols("p m c", positive=True)
    proof.check(
        "an entry is c times the weight of its positive part less that of its negative part",
        identical(scale * (plus / scale) - scale * (minus / scale), plus - minus),
        equation=19,
    )
    entries = sp.symbols("p:3", nonnegative=True)
    rest = sp.Symbol("rest", nonnegative=True)
    total = sum(entries) + rest
    proof.check(
        "with c a bound of the row sums, what is left for the sink is not negative",
        nonnegative(sp.expand(total - sum(entries))),
        equation=19,
    )
