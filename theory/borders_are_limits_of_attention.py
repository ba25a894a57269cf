"""T5. Borders are limits of attention.

New here; that softmax alone cannot pad with zeros follows an observation of arXiv 2205.13401. The
page `docs/theorems/borders_are_limits_of_attention.md` numbers the equations.

The symbolic part is exact algebra, with counterexamples in integers. The numbers are balls, which
provably contain the value: the leak of any finite box, with and without a sink and beyond the
border too, and its supremum over all boxes.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import prod

import sympy as sp
from flint import arb

from theory.saturated_softmax_is_one_hot import ACCUMULATOR, FORMATS, Format, certified_gap
from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import BITS, Exact, ball, leak_enclosure, precision, theta_minus_one

__all__ = [
    "THEOREM",
    "border_leak",
    "circle_gap",
    "circle_leak",
    "circle_leak_bound",
    "mirrored",
    "off_axis_sum",
    "prove",
    "reflecting_score",
    "reflections_contradict",
    "row_sum_error",
    "sink_leak_off_grid",
    "sink_leak_on_grid",
]

THEOREM = Theorem(
    slug="borders_are_limits_of_attention",
    number="T5",
    source="",
    title="Borders are limits of attention",
    gist=(
        "replicate is the natural border, zero padding an attention sink, circular a "
        "periodic encoding"
    ),
    claim=(
        "An image that is not padded at all is continued by attention itself: a quadratic head "
        "replicates the edge, one more key with value zero pads with zeros, and a periodic "
        "encoding goes round. "
        "Replicate padding leaks as little beyond the edge as inside, less than 1 − ϑ(e^−α)^−d. "
        "The sink may score −cα against the target's 0 for any c strictly between 0 and 1. "
        "c = 1/2 has the largest gap that serves every convolution, and at spacing 1 in the limit "
        "of large α the least leak, less than 1 − 1/(ϑ(e^−α)^d + e^(−α/2)). Without a sink and "
        "padded keys no softmax pads with zeros where two queries miss taps of different sums, "
        "since its rows sum to one. A circle of n >= 2 pixels has the gap 1 − cos(2π/n) for each "
        "unit of scale. Reflection has a relative score if and only if the shift is of one pixel "
        "at most or the axis has three pixels or fewer."
    ),
    hypotheses=(
        "the keys are the pixels: a box of integer points, with a spacing for each axis",
        "targets q + Δ are integer points, on the box, between its points or beyond it; α > 0",
        "replicate: scores −α|k − t|², or one sharpness for each axis, spacing 1; circular: "
        "α Σ cos(2π(k_i − t_i)/n_i) divided by the gap, spacing 1",
        "reflection: every pixel is a query, and shifts are shorter than the axis",
        "the weights are the softmax of the scores, over the reals",
    ),
    notation={
        "t = q + Δ": "what a head asks for, its target, in Z^d",
        "x = e^−α": "weight of a nearest neighbour relative to the target's",
        "S": "sum of x^(|k − t|²) over the keys; S_i over one axis",
        "μ": "least squared distance from an asked target that is no key to a key",
        "c, x^c": "depth of the sink in units of α, and its weight relative to a target's",
        "ϑ, ϑ(x⁴)": "Jacobi's function Σ x^(n²), and the part of it with even n",
        "ε(α)": "1 − ϑ(x)^−d, the leak of T2",
        "U": "the largest S_i off the grid: (ϑ − 1)/2 for spacing 1, at most ϑ − ϑ(x⁴) else",
        "Θ'": "the gap from which computed weights are one-hot (T8)",
    },
    proof_idea=(
        "Squared distance is a sum over the axes, on each of which it grows away from the target, "
        "so the nearest key is a clamp and what is off it is part of a half of ϑ. A sink at −cα "
        "lies between a target that is a key, 0, and one that is none, at most −α. Rows that sum "
        "to one map constants to constants, which zero padding does not. On a circle "
        "cos θ − cos mθ = 2 sin((m + 1)θ/2) sin((m − 1)θ/2)."
    ),
    references=(
        "arXiv:2205.13401",
        "arXiv:2309.17453",
        "arXiv:2508.10925",
        "Miller, Attention is off by one (2023)",
        "DLMF 20.5.9, 20.7.32",
    ),
    objects=(
        "constructions.attention_from_conv",
        "constructions.encodings.Quadratic",
        "constructions.encodings.Periodic",
        "constructions.MultiHeadSelfAttention.sink_height",
    ),
)

HALF = Fraction(1, 2)
HALF_BALL = ball(HALF)


# Numbers: what is off the limit, enclosed ---------------------------------------------------------


def border_leak(
    alpha: Exact,
    shape: Sequence[int],
    target: Sequence[int],
    *,
    spacing: Sequence[int] | None = None,
    sink: Fraction | None = None,
    bits: int = BITS,
) -> arb:
    """A ball around the attention that is not on the limit, on one box; equations (1) and (14).

    Args:
        alpha: the sharpness.
        shape: keys per axis, the first at 0.
        target: any integer point, on the box or not.
        spacing: distance between keys, 1 if left out.
        sink: c, for a sink of score -c α; None for no sink. The limit is the nearest key without
            a sink, and with one the target if it is a key, else the sink.
        bits: of precision.
    """
    with precision(bits):
        a = ball(alpha)
        distance, logs = 0, arb(0)
        for size, step, t in zip(shape, spacing or [1] * len(shape), target, strict=True):
            nearest, *others = sorted((step * i - t) ** 2 for i in range(size))
            distance += nearest
            logs += sum(((-a * (m - nearest)).exp() for m in others), arb(0)).log1p()
        mass = logs.expm1()
        if sink is not None and distance == 0:
            mass += (-a * ball(sink)).exp()
        elif sink is not None:
            mass = (1 + mass) * (-a * (distance - ball(sink))).exp()
        return mass / (1 + mass)


def off_axis_sum(alpha: Exact, spacing: int, *, bits: int = BITS) -> arb:
    """A ball around U_s, the supremum of the sum over one axis whose keys miss the target.

    (ϑ - 1)/2 for spacing 1, else the sum of x^(n²) over n = 1 modulo s; (13) and (15).
    """
    if spacing == 1:
        return theta_minus_one(alpha, bits=bits) / 2
    with precision(bits):
        a = ball(alpha)
        total, base = arb(0), 0
        while True:
            terms = [(-a * (base + first) ** 2).exp() for first in (1, spacing - 1)]
            # Each further term is a factor of at most x^(2s(base + 1) + s²) smaller.
            ratio = (-a * spacing * (2 * (base + 1) + spacing)).exp()
            rest = sum(terms, arb(0)) / (1 - ratio)
            if total > 0 and rest < total * arb(2) ** -bits:
                return total + arb(0).union(rest)
            total += sum(terms, arb(0))
            base += spacing


def sink_leak_on_grid(
    alpha: Exact, spacing: Sequence[int], sink: Fraction = HALF, *, bits: int = BITS
) -> arb:
    """A ball around 1 - 1/(Π ϑ(x^(s²)) + x^c): the supremum where the target is a key; (14)."""
    with precision(bits):
        logs = (theta_minus_one(ball(alpha) * s * s, bits=bits).log1p() for s in spacing)
        mass = sum(logs, arb(0)).expm1() + (-ball(alpha) * ball(sink)).exp()
        return mass / (1 + mass)


def sink_leak_off_grid(
    alpha: Exact, spacing: Sequence[int], sink: Fraction = HALF, *, bits: int = BITS
) -> arb:
    """A ball around R/(1 + R), R = x^-c V: the supremum where the target is no key; (14), (15)."""
    with precision(bits):
        thetas = [1 + theta_minus_one(ball(alpha) * s * s, bits=bits) for s in spacing]
        whole = prod(thetas, start=arb(1))
        ratio = arb(0)
        for step, theta in zip(spacing, thetas, strict=True):
            ratio = ratio.max(off_axis_sum(alpha, step, bits=bits) / theta)
        mass = whole * ratio * (ball(alpha) * ball(sink)).exp()
        return mass / (1 + mass)


def circle_gap(size: int, *, bits: int = BITS) -> arb:
    """A ball around 1 - cos(2π/n) = 2 sin²(π/n), for n >= 2."""
    with precision(bits):
        return 2 * (arb.pi() / size).sin() ** 2


def circle_leak(scale: Exact, shape: Sequence[int], *, bits: int = BITS) -> arb:
    """A ball around the leak on the torus of a given shape, whatever the target.

    The scores are scale * Σ cos(2π(k_i - t_i)/n_i).
    """
    with precision(bits):
        logs = arb(0)
        for size in shape:
            chords = (2 * (m * arb.pi() / size).sin() ** 2 for m in range(1, size))
            logs += sum(((-ball(scale) * chord).exp() for chord in chords), arb(0)).log1p()
        return -(-logs).expm1()


def circle_leak_bound(alpha: Exact, dimension: int, *, bits: int = BITS) -> arb:
    """A ball around 1 - ((1 - x)/(1 + x))^d, the bound (28) for every torus."""
    with precision(bits):
        x = (-ball(alpha)).exp()
        return -(dimension * ((-x).log1p() - x.log1p())).expm1()


def row_sum_error(keys: int, of: Format) -> Fraction:
    """How far the stored weights of a row of softmax may sum from 1; equation (24)."""
    via = ACCUMULATOR[of.name]
    cast, lost = Fraction(0), via.smallest_subnormal
    if of != via:
        cast, lost = of.unit_roundoff, lost + of.smallest_subnormal
    return 1 / ((1 - via.unit_roundoff) ** (keys + 1) * (1 - cast)) - 1 + keys * lost


def mirrored(position: int, size: int) -> int:
    """The pixel that reflection shows at a position within one image of the axis; (31)."""
    return (size - 1) - abs((size - 1) - abs(position))


def reflections_contradict(size: int, shift: int) -> bool:
    """Whether reflection asks two queries of one head to order two displacements oppositely.

    A query at q sees the displacements -q .. n-1-q and has to prefer one of them to the others.
    """
    wanted = {q: mirrored(q + shift, size) - q for q in range(size)}
    preferred = {
        (best, other)
        for q, best in wanted.items()
        for other in range(-q, size - q)
        if other != best
    }
    return any((other, best) in preferred for best, other in preferred)


def reflecting_score(size: int, shift: int) -> dict[int, int] | None:
    """A score of displacements for a head with this shift, 0 where not given; (34).

    None where there is none: reflection by two pixels or more, on four pixels or more.
    """
    if abs(shift) <= 1:
        return {-shift: 1, shift: 2}
    return {-2: 2, 0: 1, 2: 2} if size <= 3 else None


# The proof ----------------------------------------------------------------------------------------

ALPHA = sp.Symbol("alpha", positive=True)
X = sp.Symbol("x", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T5: equations (2) to (34) of its page."""
    proof = Proof()
    _prove_clamp(proof)
    _prove_leak_of_the_clamp(proof)
    _prove_only_diagonal(proof)
    _prove_interval(proof)
    _prove_sink_leaks(proof)
    _prove_one_half_is_best(proof)
    _prove_saturation_with_a_sink(proof)
    _prove_computed_bound(proof)
    _prove_added_constant(proof)
    _prove_necessity(proof)
    _prove_circle(proof)
    _prove_reflection(proof)
    return proof.steps


def _prove_clamp(proof: Proof) -> None:
    """The nearest key of a box lattice is found axis by axis: (2), (3)."""
    origin, step, i, t = sp.symbols("o s i t", real=True)
    proof.check(
        "from one key to the next the squared distance grows by 2s (midpoint - t)",
        identical(
            (origin + step * (i + 1) - t) ** 2 - (origin + step * i - t) ** 2,
            2 * step * (origin + step * i + step / 2 - t),
        ),
        equation=2,
    )
    midpoint = origin + step * i + step / 2
    n = sp.Symbol("n", integer=True)
    proof.check(
        "midpoints rise by s, so the distance falls and then grows; at spacing 1 twice a midpoint "
        "is odd, so that no integer ties",
        identical(midpoint.subs(i, i + 1) - midpoint, step)
        and (2 * midpoint).subs({origin: 0, step: 1, i: n}).is_odd is True
        and (2 * n).is_even is True,
        equation=2,
    )
    excess, more = sp.Symbol("a", nonnegative=True), sp.Symbol("b", positive=True)
    proof.check(
        "a sum of excesses over the least of each axis is 0 only if each is, one more axis",
        positive(excess + more) and nonnegative(excess),
        equation=3,
    )
    proof.check(
        "every box of up to 3 x 3 keys, spacings to 3, targets from -4 to 10: the nearest keys are "
        "the product of the axes' nearest keys, one clamp where the spacing is 1",
        all(
            _nearest_by_search(shape, spacing, target) == _nearest_by_axis(shape, spacing, target)
            for shape in product((1, 2, 3), repeat=2)
            for spacing in product((1, 2, 3), repeat=2)
            for target in product((-4, -1, 0, 1, 2, 3, 5, 10), repeat=2)
        )
        and all(
            _nearest_by_axis(shape, (1, 1), target) == {_clamp(shape, target)}
            for shape in product((1, 2, 3), repeat=2)
            for target in product(range(-4, 8), repeat=2)
        ),
        equation=3,
    )


def _nearest_by_search(
    shape: Sequence[int], spacing: Sequence[int], target: Sequence[int]
) -> set[tuple[int, ...]]:
    def distance(key: tuple[int, ...]) -> int:
        return sum((s * k - t) ** 2 for s, k, t in zip(spacing, key, target, strict=True))

    keys = list(product(*map(range, shape)))
    least = min(map(distance, keys))
    return {key for key in keys if distance(key) == least}


def _nearest_by_axis(
    shape: Sequence[int], spacing: Sequence[int], target: Sequence[int]
) -> set[tuple[int, ...]]:
    nearest = []
    for size, step, t in zip(shape, spacing, target, strict=True):
        # Midpoint i is (2i + 1) s/2: keys stay nearest until the target passes it.
        first = sum(2 * t > (2 * i + 1) * step for i in range(size - 1))
        last = sum(2 * t >= (2 * i + 1) * step for i in range(size - 1))
        nearest.append(range(first, last + 1))
    return set(product(*nearest))


def _clamp(shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(max(t, 0), n - 1) for t, n in zip(target, shape, strict=True))


def _prove_leak_of_the_clamp(proof: Proof) -> None:
    """Beyond the border the sum off the clamp is at most half of ϑ - 1: (4) to (6)."""
    j, m = sp.symbols("j m", integer=True, nonnegative=True)
    proof.check(
        "j beyond the border: (j + m)² - j² = m² + 2jm",
        identical((j + m) ** 2 - j**2, m**2 + 2 * j * m) and nonnegative(2 * j * m),
        equation=4,
    )
    proof.check(
        "the gap there is 1 + 2j, reached by the neighbour m = 1",
        nonnegative(((1 + m) ** 2 + 2 * j * (1 + m)) - (1 + 2 * j))
        and identical((m**2 + 2 * j * m).subs(m, 1), 1 + 2 * j),
        equation=4,
    )
    proof.check(
        "x^(m² + 2jm) = x^(2j) x^(m²) x^(2j(m - 1)), of which the last is at most 1 for m >= 1",
        identical(X ** (m**2 + 2 * j * m), X ** (2 * j) * X ** (m**2) * X ** (2 * j * (m - 1)))
        and nonnegative((2 * j * (m - 1)).subs(m, 1 + m)),
        equation=5,
    )
    theta = sp.Symbol("y", positive=True) + 1  # ϑ = 1 + y
    proof.check(
        "1 + (ϑ - 1)/2 is less than ϑ",
        positive(theta - (1 + (theta - 1) / 2)),
        equation=5,
    )
    for d in (1, 2, 3):
        sums, rests = sp.symbols(f"S:{d}", positive=True), sp.symbols(f"r:{d}", positive=True)
        proof.check(
            f"smaller on every axis is smaller in the product, d = {d}",
            positive(sp.Mul(*(s + r for s, r in zip(sums, rests, strict=True))) - sp.Mul(*sums)),
            equation=6,
        )
    total, rest = sp.symbols("S r", positive=True)
    proof.check(
        "1 - 1/S grows with S",
        equal((1 - 1 / (total + rest)) - (1 - 1 / total), rest / (total * (total + rest))),
        equation=6,
    )


def _prove_only_diagonal(proof: Proof) -> None:
    """A precision that is not diagonal does not clamp: (7), (8)."""

    def form(key: tuple[int, ...]) -> int:
        first, second = key[0] + 1, key[1] - 2
        return first * first + first * second + second * second

    keys = list(product(range(5), repeat=2))
    proof.check(
        "P = [[1, 1/2], [1/2, 1]] on 5 x 5, target (-1, 2): (0, 1), (0, 2) tie at 1, the rest >= 3",
        {key for key in keys if form(key) == 1} == {(0, 1), (0, 2)}
        and sorted(map(form, keys))[:3] == [1, 1, 3]
        and _clamp((5, 5), (-1, 2)) == (0, 2),
        equation=7,
    )
    tied, others = sp.symbols("p w", positive=True)
    proof.check(
        "of two equal weights neither exceeds a half, at any sharpness",
        equal(sp.Rational(1, 2) - tied / (2 * tied + others), others / (2 * (2 * tied + others))),
        equation=7,
    )
    own, cross, along = sp.symbols("P_22 r j", positive=True)
    first = sp.Symbol("P_11", positive=True)
    for sign in (1, -1):
        value = first * along**2 + 2 * (sign * cross) * along * (-sign) + own
        proof.check(
            f"one step to the side costs P_22 - 2|P_12| j: P_12 {'>' if sign > 0 else '<'} 0",
            identical(value - first * along**2, own - 2 * cross * along),
            equation=8,
        )
    proof.check(
        "no cost at j = P_22/(2|P_12|), a gain of 2|P_12| for every pixel beyond",
        equal((own - 2 * cross * along).subs(along, own / (2 * cross)), sp.Integer(0))
        and identical((own - 2 * cross * along) - (own - 2 * cross * (along + 1)), 2 * cross),
        equation=8,
    )


def _prove_interval(proof: Proof) -> None:
    """The scores of a sink that work, their ends, and the gap: (9) to (11)."""
    mu, c, n = sp.symbols("mu c N", positive=True)
    e, power = sp.symbols("e p", positive=True)
    proof.check(
        "on the grid: with S = 1 + e the weight 1/(S + e^s) misses 1 by (e + e^s)/(1 + e + e^s)",
        equal(1 - 1 / (1 + e + power), (e + power) / (1 + e + power)),
        equation=9,
    )
    distance = sp.Symbol("m", nonnegative=True)
    proof.check(
        "off the grid: x^(μ + m) = x^μ x^m, so that each key's term is x^μ times at most 1",
        identical(X ** (mu + distance), X**mu * X**distance),
        equation=9,
    )
    proof.check(
        "e^-αμ / e^-cα = x^(μ - c)",
        identical(sp.powsimp(sp.exp(-ALPHA * mu) / sp.exp(-c * ALPHA)), sp.exp(-ALPHA * (mu - c))),
        equation=9,
    )
    proof.check(
        "a power of x vanishes for a positive exponent, is 1 for 0 and grows for a negative one",
        sp.limit(sp.exp(-c * ALPHA), ALPHA, sp.oo) == 0
        and sp.exp(0 * ALPHA) == 1
        and sp.limit(sp.exp(c * ALPHA), ALPHA, sp.oo) == sp.oo,
        equation=9,
    )
    proof.check(
        "c = 0: target and sink have half each in the limit S -> 1; c = μ: the sink 1/(N + 1)",
        equal((1 / (1 + e + power)).subs({e: 0, power: 1}), sp.Rational(1, 2))
        and equal(power / (n * power + power), 1 / (n + 1)),
        equation=10,
    )
    more = sp.Symbol("r", nonnegative=True)
    proof.check(
        "c = μ/2 - r and c = μ/2 + r: the smaller of c and μ - c is μ/2 - r",
        all(
            {sp.expand(depth), sp.expand(mu - depth)} == {mu / 2 - more, mu / 2 + more}
            for depth in (mu / 2 - more, mu / 2 + more)
        ),
        equation=11,
    )


def _prove_sink_leaks(proof: Proof) -> None:
    """The sums on and off the grid, and what is lost with a sink: (12) to (15)."""
    m, a, b, e = sp.symbols("m a b e", integer=True, nonnegative=True)
    step, r = 2 + e, 1 + a
    n = sp.Symbol("n", integer=True)
    proof.check(
        "keys a spacing s apart: x^((sn)²) = (x^(s²))^(n²), terms of ϑ(x^(s²)) and of ϑ(x)",
        identical(X ** ((step * n) ** 2), X ** (step**2 * n**2)),
        equation=12,
    )
    odd = 2 * m + 1
    spacing = r + (1 + b)  # the target is r after one key and 1 + b before the next
    proof.check(
        "between two keys, s = r + r' with r, r' >= 1: r + sm >= 2m + 1 and r' + sm >= 2m + 1",
        nonnegative((r + spacing * m) - odd) and nonnegative((1 + b + spacing * m) - odd),
        equation=13,
    )
    proof.check(
        "beyond the border by j >= 1: j + sm >= 2m + 1 for s >= 2, and j + m >= 1 + m for s = 1",
        nonnegative((1 + a + step * m) - odd) and nonnegative((1 + a + m) - (1 + m)),
        equation=13,
    )
    proof.check(
        "the even terms of ϑ are ϑ(x⁴), and each is below the odd one before it",
        identical((2 * n) ** 2, 4 * n**2) and positive((2 * m + 2) ** 2 - (2 * m + 1) ** 2),
        equation=13,
    )
    y, even = sp.symbols("y h", positive=True)
    proof.check(
        "(ϑ - 1)/2 < ϑ, and ϑ - ϑ(x⁴) < ϑ, for ϑ = 1 + y and ϑ(x⁴) = 1 + h",
        positive((1 + y) - y / 2) and positive((1 + y) - ((1 + y) - (1 + even))),
        equation=13,
    )
    for d in (1, 2, 3):
        theta = sp.symbols(f"theta:{d}", positive=True)
        rests = sp.symbols(f"r:{d}", positive=True)
        off = sp.Symbol("U", positive=True)
        slack = sp.Symbol("v", nonnegative=True)
        larger = (off + slack) * sp.Mul(*(t + q for t, q in zip(theta[1:], rests[1:], strict=True)))
        proof.check(
            f"at most U on one axis, less than ϑ on the others: less than U ϑ^(d - 1), d = {d}",
            nonnegative(larger - off * sp.Mul(*theta[1:])),
            equation=14,
        )
    total, rest, sink = sp.symbols("S r Y", positive=True)
    on, off_grid = 1 - 1 / (total + sink), total / (total + sink)
    proof.check(
        "on the grid 1 - 1/(S + x^c), which grows with S",
        equal(on.subs(total, total + rest) - on, rest / ((total + sink) * (total + rest + sink))),
        equation=14,
    )
    proof.check(
        "off the grid R/(1 + R), R = S/x^c, which grows with S",
        equal(off_grid, (total / sink) / (1 + total / sink))
        and equal(
            off_grid.subs(total, total + rest) - off_grid,
            sink * rest / ((total + sink) * (total + rest + sink)),
        ),
        equation=14,
    )
    q, cosine, larger = sp.symbols("q C D", positive=True)
    factor = 1 + 2 * q * cosine + q**2
    proof.check(
        "a factor 1 + 2qC + q² of the triple product is at least (1 - q)² and grows with C",
        identical(factor, (1 - q) ** 2 + 2 * q * (1 + cosine))
        and positive(factor.subs(cosine, cosine + larger) - factor),
        equation=15,
    )
    proof.check(
        "beyond the border j + sm >= 1 + sm, half of the sum over n = 1 modulo s",
        nonnegative((1 + a + step * m) - (1 + step * m)),
        equation=15,
    )


def _prove_one_half_is_best(proof: Proof) -> None:
    """At spacing 1 the grid loses most, and c = 1/2 is asymptotically minimax: (16), (17)."""
    z, sigma, theta_rest = sp.symbols("z sigma w", positive=True)  # z = √x, σ = (ϑ - 1)/(2x)
    theta_power = 1 + theta_rest  # ϑ^(d - 1)
    on = theta_power * (1 + 2 * z**2 * sigma) - 1 + z
    off = theta_power * z * sigma
    bracket = 1 - z * sigma * (1 - 2 * z)
    proof.check(
        "masses on and off the grid differ by ϑ^(d - 1) (1 - zσ(1 - 2z)) - 1 + z",
        identical(on - off, theta_power * bracket - 1 + z),
        equation=16,
    )
    p = sp.Symbol("p", nonnegative=True)
    proof.check(
        "for z >= 1/2 the bracket is at least 1",
        nonnegative((z * sigma * (2 * z - 1)).subs(z, sp.Rational(1, 2) + p)),
        equation=16,
    )
    j = sp.Symbol("j", integer=True, nonnegative=True)
    proof.check(
        "σ is the sum of x^(m² - 1), m >= 1, and (1 + j)² - 1 >= 3j, so that 1 <= σ <= 1/(1 - x³)",
        identical((1 + j) ** 2 - 1 - 3 * j, j * (j - 1))
        and all(nonnegative(k * (k - 1)) for k in (sp.Integer(0), 1 + j)),
        equation=16,
    )
    proof.check(
        "for z < 1/2, x³ = z⁶: z(1 - 2z) <= 1/8 and σ <= 64/63, so that the bracket is positive",
        identical(sp.Rational(1, 8) - z * (1 - 2 * z), 2 * (z - sp.Rational(1, 4)) ** 2)
        and Fraction(1, 8) / (1 - Fraction(1, 2) ** 6) < 1,
        equation=16,
    )
    proof.check(
        "and σ(1 - 2z) < 1, since 1 - 2z < 1 - z⁶, which leaves z(1 - σ(1 - 2z)) > 0",
        identical(bracket - 1 + z, z * (1 - sigma * (1 - 2 * z)))
        and identical((1 - z**6) - (1 - 2 * z), z * (2 - z**5))
        and 2 - Fraction(1, 2) ** 5 > 0,
        equation=16,
    )
    first, second = sp.symbols("A B", positive=True)
    proof.check(
        "the larger of two numbers has a square of at least their product",
        identical((first + second) ** 2 - first * (first + second), second * (first + second))
        and positive(second * (first + second)),
        equation=17,
    )
    c, v = sp.symbols("c V", positive=True)
    proof.check(
        "x^c times x^-c V is V, whatever c; and V = ϑ^(d - 1) x σ >= x at spacing 1",
        identical(X**c * (X**-c * v), v) and positive(theta_power * X * (1 + sigma) - X),
        equation=17,
    )
    proof.check(
        "a = ϑ^d - 1, one more axis: (1 + a)(1 + y) - 1 = a + y + ay, with y < 2x/(1 - x³) and "
        "y/√x -> 0",
        identical((1 + first) * (1 + second) - 1, first + second + first * second)
        and sp.limit(2 * X / (1 - X**3) / sp.sqrt(X), X, 0) == 0,
        equation=17,
    )
    proof.check(
        "at spacing 2, V = 2(x + x⁹ + …) ϑ^(d - 1): V/x -> 2, later squares being (3 + 2m)² >= 9",
        sp.limit(2 * (X + X**9 / (1 - X)) / X, X, 0) == 2 and nonnegative((3 + 2 * j) ** 2 - 9),
        equation=17,
    )


def _prove_saturation_with_a_sink(proof: Proof) -> None:
    """Twice the sharpness saturates, in half precision too: (18)."""
    m = sp.Symbol("m", integer=True, nonnegative=True)
    c = sp.Rational(1, 2)
    proof.check(
        "in units of α/2 other keys are 2|k - t|² below a target, and 2|k - t|² - 1 >= 1 below the "
        "sink off the grid",
        identical((1 + m) / c, 2 * (1 + m))
        and identical(((1 + m) - c) / c, 2 * (1 + m) - 1)
        and positive(2 * (1 + m) - 1),
        equation=18,
    )
    for name in ("float16", "bfloat16"):
        to = FORMATS[name]
        y = to.smallest_subnormal / 2
        theta = 1 + 2 * y**2 / (1 - y**2)  # ϑ(y²) at most
        on, off = y + theta**500 - 1, (theta**500 - 1) / y
        proof.check(
            f"{name}: with a sink the tails leave the peak at 1 in up to 500 dimensions",
            4 * 2 * on <= to.unit_roundoff / 2 and 4 * 2 * off <= to.unit_roundoff / 2,
            equation=18,
        )


U64 = Fraction(1, 2**53)


def _prove_computed_bound(proof: Proof) -> None:
    """M/(1 + M) in float64, rounded up: (19)."""
    scale, mass = sp.symbols("l M", positive=True)
    smaller = scale / (1 + scale)  # any factor below 1
    proof.check(
        "f(λM) >= λ f(M) for f(M) = M/(1 + M) and λ < 1",
        positive(
            sp.cancel(
                (smaller * mass / (1 + smaller * mass) - smaller * mass / (1 + mass))
                * (1 + smaller * mass)
                * (1 + mass)
                * (1 + scale) ** 2
            )
        ),
        equation=19,
    )
    proof.check(
        "the sum, 1 + M, the quotient and the last product: (1 - u)⁴/(1 + u) (1 + 2^-46) >= 1",
        (1 - U64) ** 4 / (1 + U64) * (1 + 128 * U64) >= 1,
        equation=19,
    )
    proof.check(
        "the exponential, within two units in the last place: (1 - 4u)(1 + 2^-46)(1 - u)² >= 1",
        (1 - 4 * U64) * (1 + 128 * U64) * (1 - U64) ** 2 >= 1,
        equation=19,
    )


def _prove_added_constant(proof: Proof) -> None:
    """A sink is a constant in the denominator, the same for all heads if centred: (20), (21)."""
    score, total, raised = sp.symbols("s Z b", positive=True)
    proof.check(
        "all scores and the sink raised by b: the weights are the same",
        equal(
            sp.exp(raised) * sp.exp(score) / (sp.exp(raised) * total + sp.exp(raised)),
            sp.exp(score) / (total + 1),
        )
        and identical(sp.exp(score + raised), sp.exp(score) * sp.exp(raised)),
        equation=20,
    )
    c = sp.Rational(1, 2)
    proof.check(
        "the target at α/2 and the sink at 0 are the target at 0 and the sink at -α/2",
        identical((0 + c * ALPHA) - 0, 0 - (-c * ALPHA)),
        equation=20,
    )
    norm, other = sp.symbols("n m", integer=True, nonnegative=True)
    larger = norm + 1 + other
    proof.check(
        "uncentred, a target scores α|Δ|²: the intervals of two different norms are disjoint",
        nonnegative((larger - 1) - norm) and identical(ALPHA * norm - ALPHA, ALPHA * (norm - 1)),
        equation=21,
    )


def _prove_necessity(proof: Proof) -> None:
    """Rows that sum to one map constants to constants; zero padding does not: (22) to (25)."""
    weight, pixel, matrix, bias = (sp.Symbol(name, commutative=False) for name in "aXWb")
    mass = sp.Symbol("A")
    one = sp.Symbol("w", real=True)
    proof.check(
        "one more key of the same pixel, its weight of any sign: A X + w X = (A + w) X",
        identical(mass * pixel + one * pixel, (mass + one) * pixel),
        equation=22,
    )
    proof.check(
        "one more head that sees X, at whatever query: X W + X W' = X (W + W')",
        identical(pixel * matrix + pixel * weight, pixel * (matrix + weight)),
        equation=22,
    )
    missed, other = (sp.Symbol(name, commutative=False) for name in ("M", "M'"))
    proof.check(
        "two queries that miss taps of sums M and M' differ by X (M' - M), all taps of sum W",
        identical(
            (pixel * (matrix - missed) + bias) - (pixel * (matrix - other) + bias),
            pixel * (other - missed),
        ),
        equation=23,
    )
    u, w = sp.symbols("u w", positive=True)
    proof.check(
        "1 + u <= 1/(1 - u) and 1/(1 + u) >= 1 - u, and 1 - 1/V <= V - 1",
        identical(1 - (1 + u) * (1 - u), u**2)
        and equal((1 + w - 1) - (1 - 1 / (1 + w)), w**2 / (1 + w)),
        equation=24,
    )
    y, first, second = sp.symbols("y A B", real=True)
    proof.check(
        "(y - A) - (y - B) = B - A: one error is at least half of the difference",
        identical((y - first) - (y - second), second - first),
        equation=25,
    )
    proof.check(
        "a corner sees (p + 1)^d of the (2p + 1)^d taps, d, p <= 3; 4 of 9 leave 5/9",
        all(
            sum(min(tap) >= 0 for tap in product(range(-p, p + 1), repeat=d)) == (p + 1) ** d
            for d in (1, 2, 3)
            for p in (0, 1, 2, 3)
        )
        and 1 - Fraction(2**2, 3**2) == Fraction(5, 9),
        equation=25,
    )


def _prove_circle(proof: Proof) -> None:
    """The gap of a circle, its size, and what leaks: (26) to (30)."""
    a, b = sp.symbols("a b", real=True)
    proof.check(
        "cos(a - b) - cos(a + b) = 2 sin a sin b",
        identical(sp.expand_trig(sp.cos(a - b) - sp.cos(a + b)), 2 * sp.sin(a) * sp.sin(b)),
        equation=26,
    )
    theta, m = sp.symbols("theta m", real=True)
    up, down = (m + 1) * theta / 2, (m - 1) * theta / 2
    i, r = sp.symbols("i r", integer=True, nonnegative=True)
    proof.check(
        "with a = (m + 1)θ/2 and b = (m - 1)θ/2 these are cos θ and cos mθ",
        identical(up - down, theta) and identical(up + down, m * theta),
        equation=26,
    )
    proof.check(
        "1 <= m <= n - 1: both angles are from 0 to π, the ends for m = n - 1 and m = 1 alone",
        # n = m + 1 + r with m = 1 + i, in units of π/n
        nonnegative((2 + i + r) - (1 + i) - 1)
        and nonnegative((1 + i) - 1)
        and identical(((1 + i) + 1) + r, 2 + i + r),
        equation=26,
    )
    longer = (2 + i) + r  # N >= n >= 2
    proof.check(
        "the gap falls with n: π/n - π/N and π/n + π/N are from 0 to π, as nN - n - N >= 0",
        nonnegative(longer - (2 + i)) and nonnegative((2 + i) * longer - (2 + i) - longer),
        equation=26,
    )
    turns = sp.Symbol("l", integer=True)
    proof.check(
        "whole turns do not count: t and t mod n are one point of the circle",
        sp.cos(theta + 2 * sp.pi * turns) == sp.cos(theta),
        equation=26,
    )
    proof.check("n = 2: the gap is 2", 1 - sp.cos(sp.pi) == 2, equation=26)
    z = sp.Symbol("z", positive=True)
    half = sp.Symbol("h", positive=True)
    proof.check(
        "1 - cos 2z = 2 sin² z",
        identical((1 - sp.cos(2 * z)).rewrite(sp.exp), (2 * sp.sin(z) ** 2).rewrite(sp.exp)),
        equation=27,
    )
    proof.check(
        "z - sin z is 0 at 0 and does not fall; sin is concave on [0, π/2], its chord is 2z/π",
        (z - sp.sin(z)).subs(z, 0) == 0
        and sp.diff(z - sp.sin(z), z) == 1 - sp.cos(z)
        and sp.diff(sp.sin(z), z, 2) == -sp.sin(z)
        and sp.sin(sp.pi / 2) == 1
        and (2 * half / sp.pi).subs(half, sp.pi / 2) == 1,
        equation=27,
    )
    proof.check(
        "n² (1 - cos(2π/n)) -> 2π²",
        sp.limit((1 - sp.cos(2 * sp.pi * z)) / z**2, z, 0) == 2 * sp.pi**2,
        equation=27,
    )
    with precision(BITS):
        pi = arb.pi()
        proof.check(
            "sin² mθ >= m sin² θ, θ = π/n: m = 2 by 4 cos² θ >= 2, n >= 4; m >= 3 by 4m²/π² >= m",
            identical(sp.expand_trig(sp.sin(2 * theta)), 2 * sp.sin(theta) * sp.cos(theta))
            and 4 * sp.cos(sp.pi / 4) ** 2 == 2
            and pi**2 < 4 * 3,
            equation=28,
        )
        power = sp.Symbol("p", positive=True)
        proof.check(
            "1 + 2(x + x² + …) = (1 + x)/(1 - x), the geometric sum one more term at a time",
            equal((1 - power) / (1 - X) + power, (1 - power * X) / (1 - X))
            and equal(1 + 2 * X / (1 - X), (1 + X) / (1 - X)),
            equation=29,
        )
        proof.check(
            "four pixels sum to 1 + 2x + x², and ϑ is at most 1 + 2x + 2x⁴/(1 - x⁵), for x <= 1/2 "
            "less: 1 - x⁵ - 2x² falls and is positive at 1/2",
            equal(X**2 - 2 * X**4 / (1 - X**5), X**2 * (1 - X**5 - 2 * X**2) / (1 - X**5))
            and positive(-sp.diff(1 - X**5 - 2 * X**2, X))
            and 1 - Fraction(1, 2) ** 5 - 2 * Fraction(1, 2) ** 2 > 0,
            equation=29,
        )
        proof.check(
            "ε is no bound: on 4 x 4 pixels and at α = 4 the circle leaks more, and less than (29)",
            leak_enclosure(4, 2) < circle_leak(4, (4, 4)) < circle_leak_bound(4, 2),
            equation=29,
        )
        proof.check(
            "float32 on circles of 8, 32 and 224 pixels asks for scales of 355, 5,411 and 264,309, "
            "to the nearest integer",
            all(
                abs(certified_gap(FORMATS["float32"]) / circle_gap(size) - scale) < HALF_BALL
                for size, scale in ((8, 355), (32, 5_411), (224, 264_309))
            ),
            equation=30,
        )


def _prove_reflection(proof: Proof) -> None:
    """Reflection: the map, and why no relative score has it: (31) to (34)."""
    proof.check(
        "(n - 1) - |(n - 1) - |p|| is -p before the axis, p on it, 2(n - 1) - p after it; n <= 8",
        all(
            mirrored(p, size) == (-p if p < 0 else p if p < size else 2 * (size - 1) - p)
            for size in range(1, 9)
            for p in range(1 - size, 2 * size - 1)
        ),
        equation=31,
    )
    j = sp.Symbol("j", integer=True, positive=True)
    proof.check(
        "from j beyond the edge the mirrored pixel is 2j away, the edge j: x^(3j²) of its weight",
        identical((2 * j) ** 2 - j**2, 3 * j**2),
        equation=32,
    )
    i, r = sp.symbols("i r", integer=True, nonnegative=True)
    shift = 2 + i  # the head asks for q - shift; n = shift + 2 + r keys
    size = shift + 2 + r
    proof.check(
        "2 <= ρ <= n - 2: queries 0 and 1 want displacements ρ and ρ - 2, and both see both",
        identical(shift - 0, shift)
        and identical((shift - 1) - 1, shift - 2)
        and nonnegative(shift - 2)
        and nonnegative((size - 1) - (shift + 1)),
        equation=33,
    )
    size = 4 + i  # ρ = n - 1: queries 1 and 2
    shift = size - 1
    proof.check(
        "ρ = n - 1, n >= 4: so do queries 1 and 2, of ρ - 2 and ρ - 4",
        identical((shift - 1) - 1, shift - 2)
        and identical((shift - 2) - 2, shift - 4)
        and nonnegative(1 + (shift - 4))
        and nonnegative((size - 1) - (2 + (shift - 2))),
        equation=33,
    )
    proof.check(
        "all sizes up to 12: no contradiction for ρ <= 1 and for n = 3, one for all others",
        all(
            reflections_contradict(size, sign * rho) is (rho >= 2 and size >= 4)
            for size in range(1, 13)
            for rho in range(size)
            for sign in (1, -1)
        ),
        equation=33,
    )
    proof.check(
        "sizes up to 12, shifts shorter than the axis: the score of (34) is largest at the pixel "
        "that reflection shows, by 1 or more",
        all(
            _leads_by_one(size, query, shift)
            for size in range(1, 13)
            for query in range(size)
            for shift in range(1 - size, size)
            if reflecting_score(size, shift) is not None
        ),
        equation=34,
    )
    proof.check(
        "one of the two: a score or a contradiction, sizes up to 12, shifts shorter than the axis",
        all(
            (reflecting_score(size, shift) is None) is reflections_contradict(size, shift)
            for size in range(1, 13)
            for shift in range(1 - size, size)
        ),
        equation=34,
    )


def _leads_by_one(size: int, query: int, shift: int) -> bool:
    """Whether the key that reflection shows scores 1 or more above every other."""
    scores = reflecting_score(size, shift)
    assert scores is not None
    wanted = mirrored(query + shift, size)
    own = scores.get(wanted - query, 0)
    return all(own - scores.get(k - query, 0) >= 1 for k in range(size) if k != wanted)
