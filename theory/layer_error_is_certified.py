"""T7. The error of the layer is certified.

New here. The page `docs/theorems/layer_error_is_certified.md` numbers the equations.

The algebra is symbolic; the constants of the four formats are held by ball arithmetic; what rests
on rounding to nearest itself is also checked exhaustively, with exact rationals, in a format small
enough to try all its numbers.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import product

import sympy as sp
from flint import arb

from theory.quadratic_scores_select_one_shift import ball, precision
from theory.saturated_softmax_is_one_hot import ACCUMULATOR, EXP_ROUNDOFFS, FORMATS, Format, rounded
from theory.tools import fused_kernels, matrix_units
from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative

__all__ = ["THEOREM", "prove"]

BITS = 256

THEOREM = Theorem(
    slug="layer_error_is_certified",
    number="T7",
    source="",
    title="The error of the layer is certified",
    gist="the bound that every test of this project uses",
    claim=(
        "The attention layer built from a convolution differs from it, at every output, by at most "
        "a leak plus a rounding that are computed from the input at hand. "
        "The leak is what the reals have, the convolution of what soft padding does to this very "
        "image, and is the error itself wherever rounding is small; the rounding is a worst case "
        "over all orders of summation, and has no term for the heads when they are saturated. "
        "Both hold in float16, bfloat16, float32 and float64, for sums of any length, and through "
        "underflow; and on matrix units too, which round the operands of float32 products and "
        "truncate their sums, if torch's flags let them."
    ),
    hypotheses=(
        "The layer is the one that the construction builds: softmax of quadratic or periodic "
        "scores, one head a tap, one of W_val and W_out the identity.",
        "Every operation is rounded to nearest, in any order, with or without fused "
        "multiply-adds, and underflows gradually; sums run in the accumulator's format, and the "
        "output is rounded once.",
        "A matrix unit may instead cut operands to p bits, and add several numbers at once: "
        "aligned to the largest and cut there, added exactly, and cut to the accumulator's "
        "precision, in any direction, with subnormals flushed or not.",
        "The computed exponential of x <= 0 errs by at most κ u e^x + ν with κ = 40, ν the "
        "smallest normal number, and is 1 at 0.",
        "Pixels, matrices and bias are finite, and no sum overflows.",
    ),
    notation={
        "u, η, ν": "unit roundoff, smallest subnormal and smallest normal of the accumulator; with "
        "an index w, of the format of weights and output",
        "v, t": "what cutting does to an operand, 2^(1-p), and to a sum, 2u, on a matrix unit",
        "γ_n, G_n": "(1 + u)^n - 1, and the growth of a sum of n products there",
        "P, P_inf": "the soft padding (T4), and its limit at infinite sharpness",
        "Λ, λ": "bounds on the off-limit mass before normalisation, real and computed",
        "T, n": "number of keys, and of products in one output",
        "X, M, R": "what a head should see, what it sees of the moduli, the largest modulus",
    },
    proof_idea=(
        "Over the reals the layer errs by the convolution of (P - P_inf) X. In floating point "
        "every weight errs relatively, which bounds the error by the size of what is seen; or, "
        "since a rounded sum is never further from the exact one than the target pixel is, by the "
        "off-limit mass alone. The smaller of the two is carried through the sum over taps. A "
        "matrix unit adds k numbers at the cost of k roundings of their moduli, so that any tree "
        "of n products costs fewer than 2n."
    ),
    references=(
        "arXiv:1909.03469",
        "Higham, Accuracy and Stability of Numerical Algorithms, ch. 3",
        "Fasi, Higham, Mikaitis, Pranesh, PeerJ CS 7:e330",
        "Blanchard, Higham, Lopez, Mary, Pranesh, SISC 42(3), C124-C141",
        "arXiv:2512.07004",
    ),
    objects=(
        "constructions.certify",
        "constructions.assert_equivalent",
        "constructions.certificate.head_rounding",
        "constructions.certificate.layer_bound",
        "constructions.certificate.gamma",
        "constructions.certificate.Products",
        "constructions.certificate.products_of",
    ),
)

TOY = Format("toy", precision=3, least_exponent=-1, greatest_exponent=2)
"""A format of 39 numbers, subnormals included."""


def prove() -> tuple[Step, ...]:
    """Establish the numbered equations of the page."""
    proof = Proof()
    with precision(BITS):
        _growth(proof)
        _nearest(proof)
        _real_heads(proof)
        _exponentials(proof)
        _relative_form(proof)
        _mass_form(proof)
        _layer(proof)
        _output(proof)
        matrix_units.establish(proof)
        fused_kernels.establish(proof)
    return proof.steps


def _growth(proof: Proof) -> None:
    u, g, p, d = sp.symbols("u g p d", nonnegative=True)
    m, n = sp.symbols("m n", integer=True, nonnegative=True)
    # |(1 + p)(1 + d) - 1| <= |p| + |d| + |p||d|, with |p| <= g and |d| <= u.
    proof.check(
        "one more rounding takes a growth of g to at most (1 + g)(1 + u) - 1",
        nonnegative(((1 + p + g) * (1 + d + u) - 1) - (p + d + p * d)),
        equation=1,
    )
    growth = (1 + u) ** n - 1
    proof.check(
        "(1 + γ_n)(1 + u) - 1 = γ_(n+1)",
        identical(
            sp.powsimp(((1 + growth) * (1 + u)).expand()),
            sp.powsimp(((1 + u) ** n * (1 + u)).expand()),
        )
        and identical(sp.powsimp((1 + u) ** n * (1 + u)), (1 + u) ** (n + 1)),
        equation=1,
    )
    proof.check(
        "(1 + γ_m)(1 + γ_n) = 1 + γ_(m+n)",
        identical(sp.powsimp((1 + u) ** m * (1 + u) ** n), (1 + u) ** (m + n)),
        equation=1,
    )
    # At a node of the tree: |fl(a + b) - (A + B)| with |a - A| <= g |A|', |b - B| <= g |B|',
    # where ' stands for the sums of moduli. The rounding adds u |a + b| <= u (1 + g)(A' + B').
    a, b = sp.symbols("A B", nonnegative=True)
    proof.check(
        "a rounded sum of two sums with growth g has growth (1 + g)(1 + u) - 1",
        identical(g * (a + b) + u * (1 + g) * (a + b), ((1 + g) * (1 + u) - 1) * (a + b)),
        equation=2,
    )
    # Underflow: a product loses up to η/2, and the roundings above it enlarge that by 1 + γ_(n-1).
    eta = sp.Symbol("eta", nonnegative=True)
    terms = sp.Symbol("n", positive=True)
    proof.check(
        "n underflows of η/2, enlarged by 1 + γ <= 1 + γ', are at most (1 + γ') n η/2",
        nonnegative((1 + g + p) * terms * eta / 2 - (1 + g) * terms * eta / 2),
        equation=2,
    )
    proof.check(
        "which is n η less (1 - γ) n η/2, so at most n η while γ <= 1",
        identical(terms * eta - (1 + g) * terms * eta / 2, (1 - g) * terms * eta / 2),
        equation=2,
    )
    for name, most in (("bfloat16", 177), ("float16", 1_419)):
        step = 1 + FORMATS[name].unit_roundoff
        proof.check(
            f"{name}: γ_n <= 1 for n = {most}, and not for one more",
            step**most <= 2 < step ** (most + 1),
            equation=2,
        )
    proof.check(
        "float32: γ_n <= 1 for n = 11,000,000",
        bool((1 + ball(FORMATS["float32"].unit_roundoff)) ** 11_000_000 < 2),
        equation=2,
    )
    # For n u < 1: (1 + u)^n - 1 <= n u / (1 - n u), by induction on n.
    x = sp.symbols("x", nonnegative=True)  # x = n u
    proof.check(
        "γ_n <= nu/(1 - nu) while nu < 1: 1/(1 - x - u) - (1 + u)/(1 - x) has numerator u (x + u)",
        identical((1 - x) - (1 + u) * (1 - x - u), u * (x + u)),
        equation=1,
    )
    proof.check(
        "bfloat16: 256 terms have nu = 1, where the usual bound nu/(1 - nu) ends and γ_n does not",
        256 * FORMATS["bfloat16"].unit_roundoff == 1,
        equation=1,
    )


def _nearest(proof: Proof) -> None:
    a, b = sp.symbols("a b", real=True)
    proof.check(
        "the exact sum a + b is |b| away from a, a number of the format",
        identical((a + b) - a, b),
        equation=3,
    )
    t, x = sp.symbols("t x", real=True)
    proof.check(
        "the exact product t x is |1 - t||x| away from x, and |t x| away from 0",
        identical(x - t * x, (1 - t) * x) and identical(t * x - 0, t * x),
        equation=3,
    )
    numbers = tuple(_numbers(TOY))
    proof.check(
        "exhaustively: every rounded sum of the toy format errs by at most either operand",
        all(
            abs(_fl(s + t) - (s + t)) <= min(abs(s), abs(t))
            for s, t in product(numbers, repeat=2)
            if abs(s + t) <= TOY.largest
        ),
        equation=3,
    )
    weights = tuple(w for w in numbers if 0 <= w <= 1)
    proof.check(
        "exhaustively: every rounded product by a weight errs by at most (1 - t)|x| and t|x|",
        all(
            abs(_fl(t * x) - t * x) <= min((1 - t) * abs(x), t * abs(x))
            for t, x in product(weights, numbers)
        ),
        equation=3,
    )
    proof.check(
        "exhaustively: a fused multiply-add a + t x errs by at most t|x|, and by |a + t x - x|",
        all(
            abs(_fl(a + t * x) - (a + t * x)) <= min(t * abs(x), abs(a + t * x - x))
            for a, t, x in product(numbers, weights, numbers)
            if abs(a + t * x) <= TOY.largest
        ),
        equation=3,
    )


def _numbers(of: Format) -> Iterator[Fraction]:
    """All finite numbers of a small format."""
    eta = of.smallest_subnormal
    for k in range(int(of.largest / eta) + 1):
        value = k * eta
        if rounded(value, of) == value:
            yield value
            if value:
                yield -value


@cache  # the same few sums come again and again
def _fl(value: Fraction) -> Fraction:
    return rounded(value, TOY)


def _real_heads(proof: Proof) -> None:
    # Weights a_k that sum to one, the target's being 1 minus the others.
    for keys in (2, 3, 4):
        weights, pixels = sp.symbols(f"a1:{keys}"), sp.symbols(f"X0:{keys}")
        target = 1 - sum(weights)
        seen = target * pixels[0] + sum(w * x for w, x in zip(weights, pixels[1:], strict=True))
        proof.check(
            f"a head errs by its off-target weights times distances to the target, {keys} keys",
            identical(
                seen - pixels[0],
                sum(w * (x - pixels[0]) for w, x in zip(weights, pixels[1:], strict=True)),
            ),
            equation=4,
        )
    total, weight, pixel, target_pixel = sp.symbols("s a X X_t")
    proof.check(
        "one more key: taking its weight from the target adds its own distance",
        identical(
            ((1 - total - weight) * target_pixel + weight * pixel) - (1 - total) * target_pixel,
            weight * (pixel - target_pixel),
        ),
        equation=4,
    )
    mass, more = sp.symbols("L r", nonnegative=True)
    proof.check(
        "L/(1 + L) grows with L",
        sp.cancel(
            (mass + more) / (1 + mass + more)
            - mass / (1 + mass)
            - more / ((1 + mass) * (1 + mass + more))
        )
        == 0,
        equation=4,
    )
    # A sum of matrices times differences is the difference of the sums, one more tap.
    w, seen_there, there, so_far, sought = sp.symbols("W S X Y Z")
    proof.check(
        "the convolution of what is seen, less that of what is sought, is that of the difference",
        identical(
            (so_far + seen_there * w) - (sought + there * w),
            (so_far - sought) + (seen_there - there) * w,
        ),
        equation=4,
    )
    # Two keys attain it: the target at the lowest pixel, the other at the highest.
    low, high = sp.symbols("X_t X_k")
    proof.check(
        "a head with two keys attains the bound: it errs by the off-target weight times D",
        identical((1 - weight) * low + weight * high - low, weight * (high - low)),
        equation=4,
    )


def _exponentials(proof: Proof) -> None:
    for name in ("float32", "float64"):
        of = FORMATS[name]
        u, tiny = ball(of.unit_roundoff), ball(of.smallest_normal)
        lowest = 1 - tiny.log()  # S
        relative = (EXP_ROUNDOFFS + 2 * lowest) * u * ball(1 + Fraction(1, 2**12))  # τ
        proof.check(
            f"{name}: (1 + κu) e^(2uS) <= 1 + τ",
            bool((1 + EXP_ROUNDOFFS * u) * (2 * u * lowest).exp() < 1 + relative),
            equation=5,
        )
        proof.check(
            f"{name}: 1 - (1 - κu) e^(-2uS) <= τ",
            bool(1 - (1 - EXP_ROUNDOFFS * u) * (-2 * u * lowest).exp() < relative),
            equation=5,
        )
        proof.check(
            f"{name}: at scores below -S, exact and computed exponential are below 2ν",
            bool((1 + EXP_ROUNDOFFS * u) * (-lowest * (1 - 2 * u)).exp() + tiny < 2 * tiny)
            and bool((-lowest).exp() < 2 * tiny),
            equation=5,
        )
    double = FORMATS["float64"]
    for name, of in ACCUMULATOR.items():
        # The product of sharpness and integer is rounded to float64, then to the accumulator.
        once = 1 + double.unit_roundoff
        total = once if of == double else once * (1 + of.unit_roundoff)
        proof.check(
            f"{name}: a computed score errs relatively by at most 2u",
            total - 1 <= 2 * of.unit_roundoff,
            equation=5,
        )


def _relative_form(proof: Proof) -> None:
    x, y, a, b, u, c = sp.symbols("x y a b u c", nonnegative=True)
    proof.check(
        "(1 - x)(1 - y) >= 1 - (x + y)",
        nonnegative((1 - x) * (1 - y) - (1 - (x + y))),
        equation=7,
    )
    proof.check(
        "(1 + a)/(1 - b) - 1 = (a + b)/(1 - b)",
        sp.cancel((1 + a) / (1 - b) - 1 - (a + b) / (1 - b)) == 0,
        equation=7,
    )
    # 1 - (1 - a)/(1 + b) = (a + b)/(1 + b), the other side, is smaller.
    proof.check(
        "1 - (1 - a)/(1 + b) = (a + b)/(1 + b)",
        sp.cancel(1 - (1 - a) / (1 + b) - (a + b) / (1 + b)) == 0,
        equation=7,
    )
    difference = (2 * u + c) * (1 + 2 * u) - ((1 + u) ** 2 * (1 + c) - 1)
    proof.check(
        "(1 + u)²(1 + c) - 1 <= (2u + c)(1 + 2u) for c <= 1: the difference is u²(3 - c)",
        identical(difference, u**2 * (3 - c)),
        equation=7,
    )
    tau, rho, lost = sp.symbols("tau rho z", nonnegative=True)
    proof.check(
        "a weight errs by τ and by ρ: (1 + τ)(1 + ρ) - 1 = τ + ρ + τρ",
        identical((1 + tau) * (1 + rho) - 1, tau + rho + tau * rho),
        equation=8,
    )
    g, mu, seen, largest = sp.symbols("g mu M R", nonnegative=True)
    errors = mu * seen + lost * largest
    sizes = (1 + mu) * seen + lost * largest
    proof.check(
        "errors of the weights plus γ_T times the sizes: ((1 + μ)(1 + γ_T) - 1) M + (1 + γ_T) z R",
        identical(errors + g * sizes, ((1 + mu) * (1 + g) - 1) * seen + (1 + g) * lost * largest),
        equation=9,
    )


def _mass_form(proof: Proof) -> None:
    g, lam, stored, target, largest = sp.symbols("g lambda lambda' X R", nonnegative=True)
    # Adding to the path of the target moves it by at most twice what is added, equation (3); what
    # is added are computed partial sums of the others, at most (1 + g) times their total.
    excess = 2 * (1 + g) * lam  # s: the computed sum of exponentials minus 1
    proof.check(
        "1/(1 + s) >= 1 - s: the product is 1 - s²",
        identical((1 + lam) * (1 - lam), 1 - lam**2),
        equation=10,
    )
    peak = 2 * (2 * excess)  # rounding doubles the distance from 1: by the division, by the cast
    product_error = 2 * peak  # and rounding doubles that of t X from X
    proof.check(
        "the target's product is within 16 (1 + g) λ |X| of X",
        identical(product_error * target, 16 * (1 + g) * lam * target),
        equation=11,
    )
    off_weights = 2 * stored  # the cast at most doubles a weight
    off_products = 2 * off_weights * largest  # and a product
    moved = 2 * (1 + g) * off_products
    proof.check(
        "the other products move the sum by at most 8 (1 + g) λ' R",
        identical(moved, 8 * (1 + g) * stored * largest),
        equation=11,
    )
    more, beyond = sp.symbols("a r", nonnegative=True)  # λ' = λ + a, R = X + r
    proof.check(
        "16 λ |X| + 8 λ' R and, over the reals, 2 λ' R are at most 26 λ' R",
        nonnegative(
            26 * (lam + more) * (target + beyond)
            - (16 * lam * target + 10 * (lam + more) * (target + beyond))
        ),
        equation=11,
    )
    numbers = tuple(n for n in _numbers(TOY) if abs(n) <= 2)
    proof.check(
        "exhaustively in the toy format: in every order of three summands the sum moves from the "
        "first by at most twice the moduli of what is added",
        all(
            abs(computed - first) <= 2 * added
            for first, second, third in product(numbers, repeat=3)
            if first >= 0  # rounding to nearest has no sign
            for computed, added in (
                (_fl(_fl(first + second) + third), abs(second) + abs(third)),
                (_fl(first + _fl(second + third)), abs(_fl(second + third))),
            )
        ),
        equation=11,
    )


def _layer(proof: Proof) -> None:
    g, w, x, e, bias = sp.symbols("g W X e b", nonnegative=True)
    proof.check(
        "the sum over taps: errors of the heads, and γ_(n+1) times the size with them in it",
        identical(w * e + g * (w * (x + e) + bias), w * e + g * (w * x + bias + w * e)),
        equation=12,
    )
    # One more tap, induction.
    w2, e2 = sp.symbols("W_2 e_2", real=True)
    head, head_error = sp.symbols("Y f", real=True)
    proof.check(
        "errors of heads are multiplied by their matrices and add up, one more tap",
        identical((head + head_error + w2 * (x + e2)) - (head + w2 * x), head_error + w2 * e2),
        equation=12,
    )


def _partial_sums(proof: Proof) -> None:
    g, mu, z, keys, tau = sp.symbols("g mu z T tau", nonnegative=True)
    seen, largest, more = sp.symbols("M R d", nonnegative=True)
    one = sp.Integer(1)
    proof.check(
        "weights within μA + z of A, of sum at most 1, make R and N_1 at M = R, underflow apart",
        identical(
            (1 + g) * ((1 + mu) * one + z) * largest,
            largest + (((1 + mu) * (1 + g) - 1) * largest + (1 + g) * z * largest),
        ),
        equation=28,
    )
    proof.check(
        "fewer keys have less: the bound grows with M, by (1 + μ)(1 + g) - 1 of what is more",
        identical(
            ((1 + mu) * (1 + g) - 1) * (seen + more) - ((1 + mu) * (1 + g) - 1) * seen,
            (mu + g + mu * g) * more,
        ),
        equation=28,
    )
    proof.check(
        "T exponentials of at most 1 + τ each, one more key",
        identical(
            (keys + 1) * (1 + tau) * largest - keys * (1 + tau) * largest, (1 + tau) * largest
        ),
        equation=28,
    )


def _output(proof: Proof) -> None:
    u, y, total = sp.symbols("u Y E", nonnegative=True)
    proof.check(
        "rounding the output: u_w (|Y| + E), since the sum is within E of Y",
        identical(u * (y + total) - u * y, u * total),
        equation=13,
    )
    for name in ("float16", "bfloat16"):
        low, wide = FORMATS[name], ACCUMULATOR[name]
        proof.check(
            f"{name}: products of two numbers are exact in the accumulator, barring underflow",
            2 * low.precision <= wide.precision,
            equation=12,
        )
    # The bound is a sum of terms of one sign: computed, it loses at most γ of itself.
    g, value = sp.symbols("g B", nonnegative=True)
    m, c, mean, exact = sp.symbols("m c M w", positive=True)
    proof.check(
        "a constant stored as c instead of w changes c M by |c - w|/w of w M",
        sp.cancel((c * mean - exact * mean) - (c - exact) / exact * (exact * mean)) == 0,
        equation=16,
    )
    u1, u2 = sp.symbols("u_1 u_2", nonnegative=True)
    proof.check(
        "a quotient rounded once and then again errs by (1 + u)(1 + u') - 1 of it, and η",
        identical(u1 * exact + u2 * (1 + u1) * exact, ((1 + u1) * (1 + u2) - 1) * exact),
        equation=16,
    )
    proof.check(
        "m pixels of weight 1/m each sum to their mean",
        sp.cancel(m * (1 / m) * mean - mean) == 0,
        equation=16,
    )
    _partial_sums(proof)
    proof.check(
        "B (1 - γ)(1 + 2γ) >= B for γ <= 1/2: the difference is γ(1 - 2γ)B",
        identical(value * (1 - g) * (1 + 2 * g) - value, g * (1 - 2 * g) * value),
        equation=15,
    )
    proof.check(
        "a growth of n + 32 roundings of float64 is below 1/2 for n up to 2^50",
        bool(
            (arb(2**50 + 32) * ball(FORMATS["float64"].unit_roundoff)).exp() - 1
            < ball(Fraction(1, 2))
        ),
        equation=15,
    )
