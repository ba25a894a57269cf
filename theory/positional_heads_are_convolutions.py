"""T25. Positional heads are convolutions, up to a renormalisation.

New here. The page `docs/theorems/positional_heads_are_convolutions.md` numbers the equations.

Exponentials of scores and pixels are symbols. What ranges over all boxes or numbers of axes is
reduced to one term more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive

__all__ = ["THEOREM", "Point", "by_convolutions", "by_definition", "prove", "tail_bound"]

THEOREM = Theorem(
    slug="positional_heads_are_convolutions",
    number="T25",
    source="",
    title="Positional heads are convolutions, up to a renormalisation",
    gist=(
        "the converse: conv_g(X)/conv_g(1), exact on any box; a trained positional layer at "
        "a convolution's cost"
    ),
    claim=(
        "A softmax head that scores keys by displacement alone is a quotient of two convolutions: "
        "conv_g(X)/conv_g(1), the kernel e^g. With a sink e^σ is added to the denominator. This "
        "is exact for every score g and every box of keys and queries, stride included. On a torus "
        "the denominator is constant, and the head is the circular convolution with the kernel "
        "e^g/Σe^g; without a sink the scalar kernels of one head are the positive ones of sum 1. "
        "On a box the weights of a row are the kernel's times 1 + t_q/Z_q, t_q the kernel's mass "
        "beyond the box. A window that leaves out the part τ < 1 of a row changes the head by at "
        "most τ (max X − min X), a sink counting as a pixel of 0, and that is attained. Scores "
        "that are sums over axes factor, P = ⊗P_i, with τ ≤ Σ τ_i."
    ),
    hypotheses=(
        "head h scores key k at query q by g_h(k − q), on a torus modulo the grid; no content",
        "the weights are the softmax of the row; there may be a sink, one more key, of zero value",
        "for the product over axes: g is a sum over axes, and the keys fill a box",
        "for the certified tail: g(δ) = −a‖δ − Δ‖², real a > 0 and Δ; for the rounding: T7's model",
    ),
    notation={
        "g, E = e^g": "score of a displacement, and its exponential, the kernel",
        "K, Q": "the keys and the queries",
        "conv_g(X)_q": "Σ_δ E(δ) X_{q+δ}, X continued by zeros",
        "Z_q, Z, t_q": "conv_g(1)_q, its value were all δ met, and Z − Z_q",
        "s = e^σ": "of the sink; 0 without one",
        "τ, τ_i": "the part of a row's mass outside of the window; that of an axis",
        "a, Δ, f": "precision, shift, and the shift less its nearest integer",
        "c, φ, n": "key nearest to the target, its offset in key spacings, and steps from it",
        "w": "keys in a window on either side of the nearest",
    },
    proof_idea=(
        "Numerator and denominator of a softmax are sums over k of a function of k − q, which are "
        "convolutions. On a group such a sum of 1 does not depend on q. Leaving keys out replaces "
        "a mean by the mean of a part; the terms of a Gaussian tail fall faster than geometrically."
    ),
    references=("arXiv:1911.03584", "arXiv:2103.10697", "arXiv:2205.13401"),
    objects=(
        "constructions.lower",
        "constructions.Lowered",
        "constructions.Lowered.from_scores",
        "constructions.Lowered.error_bound",
    ),
)

Point = tuple[int, ...]
Kernel = Callable[[Point], sp.Expr]


def prove() -> tuple[Step, ...]:
    """Prove T25: equations (2) to (13) and (15) to (17) of its page."""
    proof = Proof()
    _prove_quotient(proof)
    _prove_torus(proof)
    _prove_interior(proof)
    _prove_axes(proof)
    _prove_windows(proof)
    _prove_scores(proof)
    _prove_rounding(proof)
    return proof.steps


# A head by definition, and as two convolutions ----------------------------------------------------


def by_definition(
    kernel: Kernel, pixels: Mapping[Point, sp.Expr], q: Point, sink: sp.Expr
) -> sp.Expr:
    """Equation (1): the sum over keys of weight times pixel; the kernel is e^g."""
    row = {k: kernel(tuple(i - j for i, j in zip(k, q, strict=True))) for k in pixels}
    total = sum(row.values(), sink)
    return sum((row[k] / total * pixel for k, pixel in pixels.items()), 0 * sink)


def by_convolutions(
    kernel: Kernel,
    offsets: Iterable[Point],
    pixels: Mapping[Point, sp.Expr],
    q: Point,
    sink: sp.Expr,
) -> sp.Expr:
    """Equation (2): both sums run over all displacements, the image and 1 continued by zeros."""
    above = below = 0 * sink
    for offset in offsets:
        met = tuple(i + j for i, j in zip(q, offset, strict=True))
        above += kernel(offset) * pixels.get(met, 0)
        below += kernel(offset) * int(met in pixels)
    return above / (below + sink)


def _symbol(offset: Point) -> sp.Expr:
    return sp.Symbol("E" + "_".join(map(str, offset)), positive=True)


@dataclass(frozen=True)
class Lattices:
    """Keys in a box, and queries anywhere."""

    name: str
    keys: tuple[Point, ...]
    queries: tuple[Point, ...]

    @property
    def pixels(self) -> dict[Point, sp.Expr]:
        """A symbol on each key."""
        return {k: sp.Symbol("X" + "_".join(map(str, k))) for k in self.keys}

    @property
    def offsets(self) -> tuple[Point, ...]:
        """All displacements of the hull, and some that no pair has."""
        far = 1 + max(
            abs(i - j) for k in self.keys for q in self.queries for i, j in zip(k, q, strict=True)
        )
        return tuple(product(range(-far, far + 1), repeat=len(self.keys[0])))


def _box(*shape: int, spacing: int = 1) -> tuple[Point, ...]:
    return tuple(product(*(range(0, spacing * n, spacing) for n in shape)))


BOXES = (
    Lattices("three keys, queries on and off the box", _box(3), ((-2,), (0,), (2,), (4,))),
    Lattices("stride 2", _box(4), _box(2, spacing=2)),
    Lattices("keys two apart", _box(3, spacing=2), _box(4)),
    Lattices("two axes", _box(2, 2), ((0, 0), (1, 1), (0, 2))),
    Lattices("three axes", _box(1, 2, 2), ((0, 1, 0), (1, 1, -1))),
)


def _prove_quotient(proof: Proof) -> None:
    sink = sp.Symbol("s", nonnegative=True)
    for lattices in BOXES:
        proof.check(
            f"the head is conv_g(X)/(conv_g(1) + s), e^g and X symbols: {lattices.name}",
            all(
                equal(
                    by_definition(_symbol, lattices.pixels, q, sink),
                    by_convolutions(_symbol, lattices.offsets, lattices.pixels, q, sink),
                )
                for q in lattices.queries
            ),
            equation=2,
        )
    e, pixel, above, below = sp.symbols("e X U V", positive=True)
    proof.check(
        "one more key adds e X above and e below, in the head as in the two convolutions",
        equal(
            above / below * (below / (below + e)) + e / (below + e) * pixel,
            (above + e * pixel) / (below + e),
        ),
        equation=2,
    )


def _prove_torus(proof: Proof) -> None:
    for shape in ((1,), (5,), (2, 3), (2, 2, 2)):
        points = _box(*shape)

        def around(offset: Point, shape: Point = shape) -> sp.Expr:
            return _symbol(tuple(i % n for i, n in zip(offset, shape, strict=True)))

        pixels = {k: sp.Symbol("X" + "_".join(map(str, k))) for k in points}
        total = sum(map(_symbol, points))
        circular = {
            q: sum(
                _symbol(d) * pixels[tuple((i + j) % n for i, j, n in zip(q, d, shape, strict=True))]
                for d in points
            )
            for q in points
        }
        sums = {
            q: sum(around(tuple(i - j for i, j in zip(k, q, strict=True))) for k in points)
            for q in points
        }
        proof.check(
            f"on the torus {shape} every row sums to Σ e^g",
            all(identical(value, total) for value in sums.values()),
            equation=3,
        )
        proof.check(
            f"on the torus {shape} the head is a circular convolution",
            all(
                identical(
                    sum(
                        around(tuple(i - j for i, j in zip(k, q, strict=True))) * pixels[k]
                        for k in points
                    ),
                    circular[q],
                )
                for q in points
            ),
            equation=3,
        )
    one, two, z, y, pixel = sp.symbols("E_1 E_2 Z Y X", positive=True)
    first, second = sp.symbols("W_1 W_2", commutative=False)
    proof.check(
        "two heads mixed by matrices are one convolution, with the kernel Σ_h e^g_h/Z_h W_h",
        identical(
            one / z * pixel * first + two / y * pixel * second,
            pixel * (one / z * first + two / y * second),
        ),
        equation=4,
    )
    kernel = sp.symbols("kappa_0:3", positive=True)
    total = sum(kernel)
    proof.check(
        "g = ln κ gives back κ/Σκ, for any positive κ of three entries",
        all(
            equal(sp.exp(sp.log(k)) / sum(sp.exp(sp.log(j)) for j in kernel), k / total)
            for k in kernel
        )
        and all(positive(k) for k in kernel),
        equation=5,
    )


def _prove_interior(proof: Proof) -> None:
    whole, beyond, e, x = sp.symbols("Z t e x", positive=True)
    inside = sp.Symbol("Z_q", positive=True)  # Z = Z_q + t
    proof.check(
        "e/Z_q = e/Z (1 + t/Z_q) where Z = Z_q + t",
        equal(e / inside, e / (inside + beyond) * (1 + beyond / inside))
        and equal((e / (whole - beyond)).subs(whole, inside + beyond), e / inside),
        equation=6,
    )
    # Three keys, the kernel (x, 1, x): the edge against the middle.
    edge, middle = 1 / (1 + x), 1 / (1 + 2 * x)
    proof.check(
        "on a box the weight of one displacement differs from query to query",
        equal(edge - middle, x / ((1 + x) * (1 + 2 * x))) and positive(x / ((1 + x) * (1 + 2 * x))),
        equation=6,
    )


def _prove_axes(proof: Proof) -> None:
    rows = (sp.symbols("e0:2", positive=True), sp.symbols("f0:3", positive=True))
    pairs = list(product(*rows))
    proof.check(
        "2 × 3 keys: the sum of products is the product of the sums, so weights are products",
        identical(sum(prod(pair) for pair in pairs), prod(sum(row) for row in rows))
        and all(
            equal(e * f / sum(prod(pair) for pair in pairs), e / sum(rows[0]) * (f / sum(rows[1])))
            for e, f in pairs
        ),
        equation=7,
    )
    before, sum_before, e, f = sp.symbols("E_k S e f", positive=True)
    proof.check(
        "one more axis multiplies an exponential by its own, a sum by its sum: one more key of it",
        identical(sum_before * e + sum_before * f, sum_before * (e + f))
        and equal(before * e / (sum_before * (e + f)), before / sum_before * (e / (e + f))),
        equation=7,
    )
    total, sink, above = sp.symbols("S s U", positive=True)
    proof.check(
        "a sink multiplies the row by S/(S + s)",
        equal(above / (total + sink), above / total * (total / (total + sink))),
        equation=8,
    )


def _prove_windows(proof: Proof) -> None:
    part, inside, outside = sp.symbols("tau m M", real=True)
    whole = (1 - part) * inside + part * outside
    proof.check(
        "the head less the one of the window is τ (mean outside − mean inside)",
        identical(whole - inside, part * (outside - inside)),
        equation=9,
    )
    high = sp.Symbol("h", real=True)
    below, shares = sp.symbols("d_0:3", nonnegative=True), sp.symbols("p_0:3", positive=True)
    mean = sum(p * (high - d) for p, d in zip(shares, below, strict=True)) / sum(shares)
    proof.check(
        "a mean of three numbers is at most their largest, and by symmetry at least their least",
        equal((high - mean) * sum(shares), sum(p * d for p, d in zip(shares, below, strict=True)))
        and nonnegative(sum(p * d for p, d in zip(shares, below, strict=True))),
        equation=9,
    )
    s, t, sink, mass, tail = sp.symbols("s t e S T", nonnegative=True)
    proof.check(
        "(1 − s)(1 − t) ≥ 1 − s − t: one more axis adds its own part at most",
        identical((1 - s) * (1 - t) - (1 - s - t), s * t) and nonnegative(s * t),
        equation=10,
    )
    proof.check(
        "with a sink the part outside is T/(S + T + e) = T/(S + T) times what the sink leaves",
        equal(
            tail / (mass + tail + sink),
            tail / (mass + tail) * ((mass + tail) / (mass + tail + sink)),
        ),
        equation=10,
    )
    # What the sink leaves of the whole row, against what it leaves of the window alone.
    kept, full = mass / (mass + sink), (mass + tail) / (mass + tail + sink)
    proof.check(
        "what it leaves of the whole row is at most that of the window, over 1 − τ, for τ < 1",
        equal(
            kept * (mass + tail) / mass - full,
            (mass + tail) * tail / ((mass + sink) * (mass + tail + sink)),
        ),
        equation=10,
    )


def _prove_scores(proof: Proof) -> None:
    k, c, t, spacing, n, phi, a = sp.symbols("k c t S n phi a", real=True)
    proof.check(
        "(k − t)² − (c − t)² = (k − c)(k + c − 2t)",
        identical((k - t) ** 2 - (c - t) ** 2, (k - c) * (k + c - 2 * t)),
        equation=11,
    )
    proof.check(
        "n spacings from the nearest key, at the offset φ of it, this is S² n (n + 2φ)",
        identical(
            ((k - c) * (k + c - 2 * t)).subs(k, c + n * spacing).subs(c, t + phi * spacing),
            spacing**2 * n * (n + 2 * phi),
        ),
        equation=11,
    )
    step = (n + 1) * (n + 1 + 2 * phi) - n * (n + 2 * phi)
    proof.check(
        "from step to step the exponent grows by 2n + 1 + 2φ, and that by 2",
        identical(step, 2 * n + 1 + 2 * phi) and identical(step.subs(n, n + 1) - step, 2),
        equation=11,
    )
    ratio, power = sp.symbols("rho R", positive=True)
    proof.check(
        "one more term of a geometric sum: (1 − R) + (1 − ρ) R = 1 − ρ R, R = ρ^m",
        identical((1 - power) + (1 - ratio) * power, 1 - ratio * power),
        equation=11,
    )
    window, tail, room, count = sp.symbols("Z' T p N", positive=True)  # the bound is N T − p
    bounded = (count * tail - room) / window
    proof.check(
        "a bound of at most N times the tail is at most N (1 + itself) times the part outside, if "
        "it is at least the tail",
        equal(count * (1 + tail / window) * (tail / (window + tail)) - bounded, room / window),
        equation=11,
    )
    for d in (1, 2, 3):
        slopes, delta = sp.symbols(f"w0:{d}", real=True), sp.symbols(f"r0:{d}", real=True)
        scores = sum(w * r for w, r in zip(slopes, delta, strict=True))
        scores -= a * sum(r**2 for r in delta)
        peak = [w / (2 * a) for w in slopes]
        square = -a * sum((r - p) ** 2 for r, p in zip(delta, peak, strict=True))
        proof.check(
            f"w · (δ, ‖δ‖²) is −a ‖δ − Δ‖² and a constant, Δ = w/2a, a = −w_last: d = {d}",
            equal(scores - square, sum(w**2 for w in slopes) / (4 * a)),
            equation=12,
        )
    q, whole, f = sp.symbols("q m f", real=True)
    proof.check(
        "k − q − (m + f) = (k − (q + m)) − f: the row depends on the target q + m alone",
        identical(k - q - (whole + f), k - (q + whole) - f),
        equation=13,
    )
    # Heads whose rows are equal at all targets, up to what softmax ignores.
    b, g, gap, far = sp.symbols("b g S T", positive=True)
    difference = -b * ((k + gap - t - f) ** 2 - (k - t - f) ** 2)
    proof.check(
        "the scores of two keys S apart differ by −b S (2k + S − 2t − 2f)",
        identical(difference, -b * gap * (2 * k + gap - 2 * t - 2 * f)),
        equation=13,
    )
    proof.check(
        "two targets T apart give b from that, and then one gives f",
        identical(difference.subs(t, t + far) - difference, 2 * b * gap * far)
        and identical(difference.subs(f, g) - difference, 2 * b * gap * (g - f)),
        equation=13,
    )


def _prove_rounding(proof: Proof) -> None:
    weight, wrong, seen, strayed = sp.symbols("W dW s ds", real=True)
    proof.check(
        "a stored matrix times a computed head: W' s' − W s = W' (s' − s) + (W' − W) s",
        identical(
            (weight + wrong) * (seen + strayed) - weight * seen,
            (weight + wrong) * strayed + wrong * seen,
        ),
        equation=17,
    )
    proof.check(
        "P' v' − P v = P' (v' − v) + (P' − P) v, what is read of the pixels first",
        identical(
            (weight + wrong) * (seen + strayed) - weight * seen,
            (weight + wrong) * strayed + wrong * seen,
        ),
        equation=16,
    )
    a, b = sp.symbols("alpha beta", nonnegative=True)
    proof.check(
        "roundings compound: (1 + α)(1 + β) − 1 = α + β (1 + α), α of float64 and β of storing",
        identical((1 + a) * (1 + b) - 1, a + b * (1 + a)),
        equation=15,
    )


def tail_bound(
    decay: Fraction, first: int, offset: Fraction, terms: int, exponential: Callable[..., object]
) -> object:
    """Equation (11): the bound on `terms` terms of a row from the step `first` on.

    Args:
        decay: a S².
        first: the first step that the window leaves out.
        offset: φ, positive where the steps go away from the target.
        terms: how many keys are left.
        exponential: of a Fraction, in the arithmetic that is wanted.
    """
    lead: object = exponential(-decay * first * (first + 2 * offset))
    ratio = exponential(-decay * (2 * first + 1 + 2 * offset))
    geometric = lead / (1 - ratio)  # type: ignore[operator]
    counted = lead * terms  # type: ignore[operator]
    return counted if counted < geometric else geometric
