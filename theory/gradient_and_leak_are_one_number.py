"""T26. A head's position learns from what the head leaks.

New here. The page `docs/theorems/gradient_and_leak_are_one_number.md` numbers the equations.
Algebra is sympy's; where an exponential is compared with a number, balls of python-flint enclose
it.
"""

from fractions import Fraction
from itertools import product

import sympy as sp
from flint import arb

from theory.tools.proof import (
    Proof,
    Step,
    Theorem,
    equal,
    identical,
    nonnegative,
)
from theory.tools.theta import BITS, Exact, ball, precision

__all__ = [
    "FASTEST",
    "LARGEST",
    "THEOREM",
    "moment",
    "prove",
    "shift_gradient",
    "shift_gradient_slope",
]

THEOREM = Theorem(
    slug="gradient_and_leak_are_one_number",
    number="T26",
    source="",
    title="Gradient and leak are one number",
    gist="what a head leaks is what its position can learn, and a one-hot head learns nothing",
    claim=(
        "What a head leaks is what its sharpness and its shift can learn. Learn is said of the "
        "largest derivative of what the head sees, over all images with values in [0, 1]. That "
        "in the sharpness is at least the rate at which the leak falls as the sharpness grows, "
        "and just that if and only if no key but the target is nearer than the mean squared "
        "distance. That in the shift is α E|k_i − E k_i| on axis i: at least α times leak times "
        "1 − leak of that axis, and in the limit of large grids between α times leak and 1 + "
        "x³/(1 − x⁵)² times that, x = e^−α; that limit is largest, 0.4742, at a sharpness of "
        "1.3543. A layer whose weights are one-hot in the format in which scores run learns no "
        "position and no content at all. In the pixels and the values it is the convolution, "
        "and so are its derivatives of every order."
    ),
    hypotheses=(
        "scores are −α‖k − t‖² at the target t = q + Δ, the keys finitely many integer points, "
        "without a sink; weights are their softmax over the reals",
        "where a leak is named, the target is a key",
        "where a box is named, keys are a box of integer points with spacing 1",
        "for floating point: a weight is exactly 0 once its score is Θ below the highest one (T8)",
    ),
    notation={
        "a_k, E": "the weights of a head at one query, and the mean with these weights",
        "t = q + Δ": "the target; Δ is real where it is trained",
        "D_k = ‖k − t‖²": "the squared distance of key k to the target",
        "ℓ, ℓ_i": "the leak 1 − a_t, and the weight of all keys with k_i ≠ t_i",
        "x = e^−α": "the weight of a neighbour relative to the target's",
        "A_j = Σ_(n ≥ 1) n^j x^(n²)": "so that ϑ = 1 + 2 A_0",
        "f": "how far the target is from the nearest integer point, |f_i| ≤ 1/2",
        "Θ": "ln(2/η) of the format in which scores run, float32 or float64",
    },
    proof_idea=(
        "The derivative of a softmax weight is the weight times a deviation from the mean, and "
        "deviations sum to zero. The largest value of such a form on a cube is half its sum of "
        "moduli, attained at a corner. A leak is the mean of an integer that is at least 1 off the "
        "target. One-hot weights make every product in the derivative zero."
    ),
    references=(
        "arXiv:1911.03584, equation 9: the scores",
        "arXiv:2103.10697, locality strength as a learned number",
    ),
    objects=(
        "constructions.MultiHeadSelfAttention",
        "constructions.attention_from_conv",
        "constructions.certificate.leak",
    ),
)

ALPHA = sp.Symbol("alpha", positive=True)
X = sp.Symbol("x", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T26: equations (1) to (18) of its page."""
    proof = Proof()
    _prove_derivatives(proof)
    _prove_suprema(proof)
    _prove_leak(proof)
    _prove_shift(proof)
    _prove_large_grids(proof)
    _prove_fastest(proof)
    _prove_dead_zone(proof)
    _prove_convolution(proof)
    return proof.steps


def _prove_derivatives(proof: Proof) -> None:
    """The derivative of a weight is the weight times a deviation: (1), (2)."""
    y = sp.Symbol("y")
    for count in (1, 2, 3, 4):
        slopes = sp.symbols(f"s:{count}")
        terms = [sp.Function(f"e{k}")(y) for k in range(count)]
        total = sum(terms, sp.Integer(0))
        own = {sp.Derivative(e, y): s * e for e, s in zip(terms, slopes, strict=True)}
        mean = sum(e * s for e, s in zip(terms, slopes, strict=True)) / total
        proof.check(
            f"{count} keys, e_k' = s_k e_k: a_k = e_k / Σ e has the derivative a_k (s_k - E s)",
            all(
                equal(sp.diff(e / total, y).subs(own), e / total * (s - mean))
                for e, s in zip(terms, slopes, strict=True)
            ),
            equation=1,
        )
    e, total = sp.Function("e")(y), sp.Function("S")(y)
    of_key, of_sum = sp.symbols("s m")
    proof.check(
        "any number of keys, the quotient rule: e' = s e, S' = m S give (e/S)' = (e/S)(s - m)",
        equal(
            sp.diff(e / total, y).subs(
                {sp.Derivative(e, y): of_key * e, sp.Derivative(total, y): of_sum * total}
            ),
            e / total * (of_key - of_sum),
        ),
        equation=1,
    )
    k, t = sp.symbols("k t", real=True)
    proof.check(
        "the score -α (k - t)^2 has the derivative 2 α (k - t) in t, whatever other axes add",
        identical(sp.diff(-ALPHA * (k - t) ** 2, t), 2 * ALPHA * (k - t)),
        equation=1,
    )
    mean = sp.Symbol("mean", real=True)
    proof.check(
        "t cancels: 2 α (k - t) - 2 α (E k - t) = 2 α (k - E k)",
        identical(2 * ALPHA * (k - t) - 2 * ALPHA * (mean - t), 2 * ALPHA * (k - mean)),
        equation=1,
    )
    distance = sp.Symbol("D", nonnegative=True)
    proof.check(
        "the score -α D has the derivative -D in α",
        identical(sp.diff(-ALPHA * distance, ALPHA), -distance),
        equation=2,
    )


def _prove_suprema(proof: Proof) -> None:
    """A form whose coefficients sum to zero, on a cube: (3) to (5)."""
    low, length, plus = sp.symbols("m R C", nonnegative=True)
    proof.check(
        "coefficients that sum to zero ignore a constant: C (m + R) + (-C) m = C R",
        identical(plus * (low + length) - plus * low, plus * length),
        equation=3,
    )
    proof.check(
        "positive part C and negative part C: half the sum of moduli is C",
        identical((plus + plus) / 2, plus),
        equation=3,
    )
    for signs in product((-1, 0, 1), repeat=4):
        sizes = sp.symbols("c:4", positive=True)
        form = [sign * size for sign, size in zip(signs, sizes, strict=True)]
        best = sum(c for c, sign in zip(form, signs, strict=True) if sign > 0)
        corners = product((0, 1), repeat=4)
        proof.check(
            f"signs {signs}: every corner of the cube is at most the one of the positive entries",
            all(
                nonnegative(best - sum(c * b for c, b in zip(form, corner, strict=True)))
                for corner in corners
            ),
            equation=3,
        )
    a, deviation = sp.symbols("a d", nonnegative=True)
    proof.check(
        "half of |2 α a (k - E k)| is α a |k - E k|",
        identical(2 * ALPHA * a * deviation / 2, ALPHA * a * deviation),
        equation=4,
    )
    proof.check(
        "half of |a (E D - D)|", identical(a * deviation / 2, a * (deviation / 2)), equation=5
    )


def _prove_leak(proof: Proof) -> None:
    """The sharpness learns the rate at which the leak falls: (6) to (8)."""
    leak, mean = sp.symbols("l M", real=True)
    proof.check(
        "the target has D = 0: by (2) its derivative in α is (1 - l) E D, that of l minus it",
        identical(-(1 - leak) * (mean - 0), -(1 - leak) * mean),
        equation=6,
    )
    distances = sp.symbols("D1:4", nonnegative=True)
    weights = sp.symbols("a1:4", nonnegative=True)
    mean_d = sum(a * d for a, d in zip(weights, distances, strict=True))
    target = 1 - sum(weights)
    # Σ a (E D - D) over the target and the nearer keys, less that of the target alone.
    first = target * mean_d
    nearer = first + weights[0] * (mean_d - distances[0])
    proof.check(
        "a key nearer than E D adds a (E D - D) > 0 to the target's part, and others add nothing",
        identical(nearer - first, weights[0] * (mean_d - distances[0])),
        equation=7,
    )
    m = sp.Symbol("m", integer=True, nonnegative=True)
    proof.check(
        "off the target D is an integer, so at least 1: E D - l = Σ a (D - 1) >= 0, D = 1 + m",
        nonnegative(weights[0] * ((1 + m) - 1)),
        equation=8,
    )
    for d in (1, 2, 3):
        counts = _representations(d, 6)
        mass = sum(n * X**k for k, n in counts.items() if k)
        moment_ = sum(k * n * X**k for k, n in counts.items())
        order = 3 if d == 1 else 1
        factor = 3 if d == 1 else d - 1
        remainder = sp.expand(moment_ - mass * (1 + factor * X**order))
        lowest = min(term.as_coeff_exponent(X)[1] for term in remainder.as_ordered_terms())
        proof.check(
            f"d = {d}: Σ D x^D less (1 + {factor} x^{order}) Σ x^D over D >= 1 starts at a power "
            f"above {order + 1}",
            bool(lowest > order + 1),
            equation=9,
        )


def _representations(d: int, most: int) -> dict[int, int]:
    """How many points of Z^d have each squared norm, up to `most`."""
    reach = range(-most, most + 1)
    counts: dict[int, int] = {}
    for point in product(reach, repeat=d):
        norm = sum(c * c for c in point)
        if norm <= most:
            counts[norm] = counts.get(norm, 0) + 1
    return counts


def _prove_shift(proof: Proof) -> None:
    """What a shift can learn on any keys, and on every box: (10) to (12)."""
    leak = sp.Symbol("l", real=True)
    proof.check(
        "two draws, just one of them at t_i: 2 l (1 - l), and E|k - k'| <= 2 E|k - E k|",
        identical((2 * leak * (1 - leak)) / 2, leak * (1 - leak)),
        equation=10,
    )
    k, other, mean = sp.symbols("k k2 m", real=True)
    proof.check(
        "the triangle: k - k' = (k - m) - (k' - m)",
        identical(k - other, (k - mean) - (other - mean)),
        equation=10,
    )
    up, down = sp.symbols("U V", nonnegative=True)
    proof.check(
        "deviations sum to zero, so the mean modulus is twice the positive part",
        identical((up + down).subs(down, up), 2 * up),
        equation=11,
    )
    n, mu = sp.symbols("n mu", nonnegative=True)
    proof.check(
        "for a mean mu >= 0 the positive part of n - mu is at most that of n: n - (n - mu) = mu",
        nonnegative(n - (n - mu)),
        equation=11,
    )
    a = sp.Symbol("a", real=True)
    proof.check(
        "two keys 0 and 1 of weights 1 - a and a: E|k - a| = 2 a (1 - a)",
        identical((1 - a) * a + a * (1 - a), 2 * a * (1 - a)),
        equation=12,
    )
    proof.check(
        "at a = 1/2 it is 1/2",
        (2 * a * (1 - a)).subs(a, sp.Rational(1, 2)) == sp.Rational(1, 2),
        equation=12,
    )


def _prove_large_grids(proof: Proof) -> None:
    """Centred boxes: between α l and a little more, and α by the leak: (13), (14)."""
    m = sp.Symbol("m", integer=True, nonnegative=True)
    zero, first = sp.symbols("A0 A1", positive=True)
    proof.check(
        "a centred box has E k = t, and E|k - t| = 2 A1 / (1 + 2 A0), its leak 2 A0 / (1 + 2 A0)",
        equal(
            (first + first) / (1 + 2 * zero) - (1 - 1 / (1 + 2 * zero)),
            2 * (first - zero) / (1 + 2 * zero),
        ),
        equation=13,
    )
    proof.check(
        "n^2 - 4 >= 5 (n - 2) for n = 2 and n = 3 + m",
        sp.Integer(2) ** 2 - 4 == 5 * (2 - 2) and nonnegative((3 + m) ** 2 - 4 - 5 * ((3 + m) - 2)),
        equation=13,
    )
    y, j = sp.symbols("y J", positive=True)
    power = sp.Symbol("p", positive=True)  # y^J
    partial = (1 - (j + 1) * power + j * power * y) / (1 - y) ** 2
    following = (1 - (j + 2) * power * y + (j + 1) * power * y**2) / (1 - y) ** 2
    proof.check(
        "the sum of (j + 1) y^j is 1 / (1 - y)^2 less what vanishes, one more term",
        equal(partial + (j + 1) * power, following),
        equation=13,
    )
    leak, x = sp.symbols("l x", positive=True)
    proof.check(
        "2 x / (1 + 2 x) < l means x < l / (2 (1 - l)): the difference is l - 2 x (1 - l)",
        equal(leak - 2 * x / (1 + 2 * x), (leak - 2 * x * (1 - leak)) / (1 + 2 * x)),
        equation=14,
    )
    proof.check(
        "l < 2 x / (1 - x^3) means x > l (1 - x^3) / 2",
        equal(2 * x / (1 - x**3) - leak, 2 * (x - leak * (1 - x**3) / 2) / (1 - x**3)),
        equation=14,
    )


# Numbers ------------------------------------------------------------------------------------------

TERMS = 16
FASTEST = (Fraction(13543, 10000), Fraction(13544, 10000))
"""Between what the sharpness lies at which a shift on a large grid learns most."""
LARGEST = (Fraction(47422, 100000), Fraction(47430, 100000))
"""Between what that most lies, for images with values in [0, 1]."""


def moment(alpha: arb, power: int) -> arb:
    """A ball around A_j = Σ n^j x^(n²) over n >= 1, for x = e^-α and j up to 3.

    Beyond N terms n² >= (N + 1) n, and n³ grows by less than 2 from each n to the next, N >= 3: the
    tail is at most (N + 1)³ y^(N + 1) / (1 - 2 y), y = x^(N + 1), if 2 y < 1.

    Raises:
        ValueError: α is too small for so few terms.
    """
    x = (-alpha).exp()
    y = x ** (TERMS + 1)
    if not 2 * y < 1:
        raise ValueError(f"alpha is {alpha}; accepted: more than ln 2 / {TERMS + 1}")
    tail = (TERMS + 1) ** 3 * y ** (TERMS + 1) / (1 - 2 * y)
    terms = (n**power * x ** (n * n) for n in range(1, TERMS + 1))
    return sum(terms, arb(0)) + arb(0).union(tail)


def shift_gradient(alpha: Exact) -> arb:
    """A ball around g(α) = 2 α A_1 / ϑ, what a shift on a large grid can learn (13)."""
    a = ball(alpha)
    return 2 * a * moment(a, 1) / (1 + 2 * moment(a, 0))


def shift_gradient_slope(alpha: arb) -> arb:
    """A ball around g'(α) = E|n| - α (E|n|³ - E|n| E n²), over the integers n."""
    theta = 1 + 2 * moment(alpha, 0)
    one, two, three = (2 * moment(alpha, j) / theta for j in (1, 2, 3))
    return one - alpha * (three - one * two)


def _has_sign(low: Fraction, high: Fraction, sign: int, depth: int = 40) -> bool:
    """Whether the slope has a sign all over an interval, by bisection."""
    whole = ball(low).union(ball(high))
    if sign * shift_gradient_slope(whole) > 0:
        return True
    if not depth:
        return False
    middle = (low + high) / 2
    return _has_sign(low, middle, sign, depth - 1) and _has_sign(middle, high, sign, depth - 1)


def _prove_fastest(proof: Proof) -> None:
    """One sharpness learns most: (15)."""
    first, second, third, theta = (sp.Function(name)(ALPHA) for name in ("S1", "S2", "S3", "T"))
    # S_j = Σ |n|^j x^(n²) over all integers: S_j' = -S_(j + 2), ϑ' = -S_2.
    slope = sp.diff(ALPHA * first / theta, ALPHA).subs(
        {sp.Derivative(first, ALPHA): -third, sp.Derivative(theta, ALPHA): -second}
    )
    proof.check(
        "the slope of α S_1 / ϑ with S_1' = -S_3 and ϑ' = -S_2",
        equal(
            slope,
            first / theta - ALPHA * (third / theta - (first / theta) * (second / theta)),
        ),
        equation=15,
    )
    n = sp.Symbol("n", integer=True, positive=True)
    dual = sp.exp(-(sp.pi**2) * n**2 / ALPHA)
    proof.check(
        "E n^2 = -(log ϑ)', which is 1/(2 α) less the slope of a sum of rising terms (Jacobi)",
        identical(-sp.diff(sp.log(sp.pi / ALPHA) / 2, ALPHA), 1 / (2 * ALPHA))
        and sp.diff(dual, ALPHA).is_positive is True,
        equation=15,
    )
    start, end = Fraction(11, 25), Fraction(4)
    low, high = FASTEST
    with precision(BITS):
        proof.check(
            "the slope is positive from 11/25 to 1.3543",
            _has_sign(start, low, 1),
            equation=15,
        )
        proof.check(
            "the slope is negative from 1.3544 to 4",
            _has_sign(high, end, -1),
            equation=15,
        )
        peak = shift_gradient(low).union(shift_gradient(high))
        least, most = map(ball, LARGEST)
        between = 2 * ball(high) * moment(ball(low), 1) / (1 + 2 * moment(ball(high), 0))
        proof.check(
            "between the two it is more than 0.47422 and, A_1 and A_0 falling, less than 0.4743",
            bool(peak > least and between < most),
            equation=15,
        )
        proof.check(
            "below 11/25: α E|n| <= α sqrt(E n^2) < sqrt(α/2) < sqrt(11/50) < 0.47422",
            bool(ball(start / 2).sqrt() < least),
            equation=15,
        )
        p = sp.Symbol("p", nonnegative=True)
        falling = -sp.diff(ALPHA * sp.exp(-ALPHA), ALPHA) * sp.exp(ALPHA)
        proof.check(
            "α e^-α falls from α = 1 on",
            nonnegative(falling.subs(ALPHA, 1 + p)),
            equation=15,
        )
        x = (-ball(end)).exp()
        proof.check(
            "from 4 on: n^2 >= n, so 2 α A_1 <= 2 α x / (1 - e^-4)^2, which falls from below 0.2",
            bool(2 * ball(end) * x / (1 - x) ** 2 < arb(1) / 5),
            equation=15,
        )


def _prove_dead_zone(proof: Proof) -> None:
    """Where weights are one-hot nothing is learnt: (16), (17)."""
    f = sp.Symbol("f", real=True)
    proof.check(
        "the keys 0 and 1 on an axis score α (1 - 2 f) apart",
        identical(-ALPHA * f**2 + ALPHA * (1 - f) ** 2, ALPHA * (1 - 2 * f)),
        equation=16,
    )
    j = sp.Symbol("j", integer=True, nonnegative=True)
    rest, part = sp.symbols("g h", nonnegative=True)
    half = sp.Rational(1, 2) - rest  # f <= 1/2
    proof.check(
        "no key n >= 1, and for f >= 0 no n <= -1, scores above key 1: n^2 - 2 n f >= 1 - 2 f",
        nonnegative(((1 + j) ** 2 - 2 * (1 + j) * half) - (1 - 2 * half))
        and nonnegative(((1 + j) ** 2 + 2 * (1 + j) * part) - (1 - 2 * part)),
        equation=16,
    )
    theta = sp.Symbol("Theta", positive=True)
    proof.check(
        "α (1 - 2 f) > Θ is f < 1/2 - Θ/(2 α)",
        equal(
            (ALPHA * (1 - 2 * f) - theta) / (2 * ALPHA),
            (1 / sp.Integer(2) - theta / (2 * ALPHA)) - f,
        ),
        equation=16,
    )
    gradients = sp.symbols("g0:4")
    for peak in range(4):
        row = [sp.Integer(k == peak) for k in range(4)]
        mean = sum(a * g for a, g in zip(row, gradients, strict=True))
        proof.check(
            f"one-hot at key {peak} of 4: a_k (g_k - Σ a g) = 0 for every k",
            all(identical(a * (g - mean), 0) for a, g in zip(row, gradients, strict=True)),
            equation=17,
        )


def _prove_convolution(proof: Proof) -> None:
    """One polynomial in pixels, values and bias: (18)."""
    pixels = sp.symbols("X0:3", commutative=False)
    taps = sp.symbols("W0:2", commutative=False)
    bias = sp.Symbol("b", commutative=False)
    one_hot = [[sp.Integer(k == q + h) for k in range(3)] for q in range(2) for h in range(2)]
    for q in range(2):
        layer = bias + sum(
            (one_hot[2 * q + h][k] * pixels[k] * taps[h] for h in range(2) for k in range(3)),
            sp.Integer(0),
        )
        convolution = bias + sum((pixels[q + h] * taps[h] for h in range(2)), sp.Integer(0))
        proof.check(
            f"query {q}: with one-hot weights layer and convolution are one polynomial, any ring",
            identical(layer, convolution),
            equation=18,
        )
