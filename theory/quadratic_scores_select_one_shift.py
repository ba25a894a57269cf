"""T2 (Lemma 2). Quadratic scores select one shift.

The symbolic part is exact algebra; the numbers are the balls of `theory.tools.theta`, which
provably contain the value, so that a floating-point formula can be held against them.
"""

from fractions import Fraction
from itertools import product
from math import pi

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import (
    BITS,
    ball,
    box_leak,
    leak_enclosure,
    off_target_mass_enclosure,
    precision,
    theta_minus_one,
)

__all__ = [
    "THEOREM",
    "ball",
    "box_leak",
    "leak_enclosure",
    "off_target_mass_enclosure",
    "precision",
    "prove",
    "theta_minus_one",
]

THEOREM = Theorem(
    slug="quadratic_scores_select_one_shift",
    number="T2",
    source="Lemma 2",
    title="Quadratic scores select one shift",
    gist="how a head looks at one place, and the exact supremum of what it leaks",
    claim=(
        "A head with quadratic scores attends one shift: on every grid that holds the target, "
        "whatever the query, less than 1 − ϑ(e^−α)^−d of its attention falls on other keys. "
        "Here ϑ(x) = Σ x^(n²) over all integers n, and the scores are −α‖δ − Δ‖² up to a constant, "
        "which softmax ignores. The bound is a supremum: large boxes approach it and no finite "
        "grid attains it. With a sharpness α_i for each axis it is 1 − Π ϑ(e^−α_i)^−1."
    ),
    hypotheses=(
        "Δ is an integer shift and α > 0",
        "the keys are finitely many integer points, and the target q + Δ is one of them",
        "the weights are the softmax of the scores, over the reals",
    ),
    notation={
        "δ = k − q": "displacement from query to key, in Z^d",
        "Δ, t": "the head's shift, in Z^d, and its target t = q + Δ",
        "α": "the sharpness, α > 0",
        "r_δ = (‖δ‖², δ)": "the quadratic encoding, of dimension D_p = d + 1",
        "v = −α(1, −2Δ)": "the head's positional vector",
        "x = e^−α": "the weight of a nearest neighbour relative to the target's, 0 < x < 1",
        "S, L = S − 1": "sum of all weights relative to the target's, and its part off the target",
        "ϑ": "Jacobi's ϑ function, ϑ(x) = Σ x^(n²)",
        "ε(α)": "the leak 1 − ϑ(x)^−d",
    },
    proof_idea=(
        "Complete the square on every axis; the rest does not depend on the key and cancels in the "
        "softmax. The sum of the relative weights over a set of integer points is part of the "
        "product of d ϑ series, all of whose terms are positive."
    ),
    references=(
        "arXiv:1911.03584, equation 9 and Lemma 2",
        "DLMF 20.7.32 (Jacobi's identity)",
    ),
    objects=(
        "constructions.encodings.Quadratic",
        "constructions.certificate.leak",
        "constructions.certificate.off_target_mass",
    ),
)

ALPHA = sp.Symbol("alpha", positive=True)
X = sp.Symbol("x", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T2: equations (2) to (22) of its page."""
    proof = Proof()
    _prove_squares(proof)
    _prove_softmax(proof)
    _prove_theta_bound(proof)
    _prove_supremum(proof)
    _prove_size(proof)
    _prove_floating_point(proof)
    return proof.steps


def _prove_squares(proof: Proof) -> None:
    """Scores are minus a squared distance, up to a constant of the head: (2), (3), (13), (15)."""
    t, shift, q_norm, product_ = sp.symbols("t D Q R", real=True)
    axis = -ALPHA * (t**2 - 2 * shift * t)
    proof.check(
        "one axis: the square is completed, displacement, shift and sharpness symbolic",
        identical(axis, -ALPHA * (t - shift) ** 2 + ALPHA * shift**2),
        equation=2,
    )
    proof.check(
        "one more axis adds its own score to that of the others",
        identical(
            -ALPHA * ((q_norm + t**2) - 2 * (product_ + shift * t)),
            -ALPHA * (q_norm - 2 * product_) + axis,
        ),
        equation=3,
    )
    for d in (1, 2, 3):
        delta, target = sp.Matrix(sp.symbols(f"delta:{d}")), sp.Matrix(sp.symbols(f"Delta:{d}"))
        encoding = sp.Matrix([delta.dot(delta), *delta])
        vector = -ALPHA * sp.Matrix([1, *(-2 * target)])
        difference = delta - target
        score = -ALPHA * difference.dot(difference) + ALPHA * target.dot(target)
        proof.check(
            f"v . r_delta = -α |δ - Δ|^2 + α |Δ|^2, d = {d}",
            identical(vector.dot(encoding), score),
            equation=3,
        )
        sharpness = sp.symbols(f"alpha:{d}", positive=True)
        generalised = sp.Matrix([*(c**2 for c in delta), *delta])
        axes = list(zip(sharpness, delta, target, strict=True))
        vector = sp.Matrix([*(-a for a in sharpness), *(2 * a * s for a, _, s in axes)])
        proof.check(
            f"one sharpness per axis, encoding (delta_i^2, delta_i), d = {d}",
            identical(
                vector.dot(generalised), sum(-a * (c - s) ** 2 + a * s**2 for a, c, s in axes)
            ),
            equation=15,
        )
    m = sp.Symbol("m", integer=True, nonnegative=True)
    proof.check(
        "a non-zero integer n, |n| = 1 + m, has n^2 >= 1",
        nonnegative((1 + m) ** 2 - 1),
        equation=13,
    )
    proof.check(
        "the nearest neighbour scores α less than the target",
        identical(-ALPHA * (shift - shift) ** 2 + ALPHA * ((shift + 1) - shift) ** 2, ALPHA),
        equation=13,
    )


def _prove_softmax(proof: Proof) -> None:
    """Softmax ignores the constant, the leak is L / (1 + L), boxes separate: (4) to (7)."""
    factor, total, term = sp.symbols("y S e", positive=True)
    score, constant = sp.symbols("s c", real=True)
    n = sp.Symbol("n", integer=True, nonnegative=True)
    proof.check(
        "a constant added to a score multiplies its exponential",
        identical(sp.exp(score + constant), sp.exp(score) * sp.exp(constant)),
        equation=4,
    )
    proof.check(
        "a common factor of all terms, one more term at a time, is a factor of the sum",
        identical(factor * total + factor * term, factor * (total + term)),
        equation=4,
    )
    proof.check(
        "a common factor cancels in the weight",
        equal(factor * term / (factor * total), term / total),
        equation=4,
    )
    proof.check(
        "exp(-α n) = x^n for x = exp(-α)",
        identical(sp.exp(-ALPHA) ** n, sp.exp(-ALPHA * n)),
        equation=4,
    )
    mass, more = sp.symbols("L r", positive=True)
    leak = mass / (1 + mass)
    proof.check("1 - 1/S = L/(1 + L)", equal(1 - 1 / (1 + mass), leak), equation=5)
    proof.check(
        "the leak grows with L",
        equal(leak.subs(mass, mass + more) - leak, more / ((1 + mass) * (1 + mass + more))),
        equation=5,
    )
    a, b = sp.symbols("a b", integer=True)
    proof.check(
        "x^(a^2 + b^2) = x^(a^2) x^(b^2)",
        identical(X ** (a**2 + b**2), X ** (a**2) * X ** (b**2)),
        equation=6,
    )
    one_axis, other_axis, key = sp.symbols("A B g")
    proof.check(
        "two axes, induction on the first: one more key adds its copy of the other axis",
        identical((one_axis + key) * other_axis, one_axis * other_axis + key * other_axis),
        equation=6,
    )
    for shape in ((3,), (3, 2), (2, 3, 2)):
        axes = [sp.symbols(f"g{i}_:{size}") for i, size in enumerate(shape)]
        whole = sum(sp.Mul(*factors) for factors in product(*axes))
        proof.check(
            f"the sum over a box of shape {shape} is the product of the sums over its axes",
            identical(whole, sp.Mul(*(sum(axis) for axis in axes))),
            equation=6,
        )


def _prove_theta_bound(proof: Proof) -> None:
    """Every finite set of integer points has S < ϑ^d, hence leak < ε: (7) to (10)."""
    n, a, t = sp.symbols("n a t", integer=True)
    proof.check("every term of ϑ is positive", positive(X ** (n**2)), equation=8)
    proof.check(
        "two keys at one displacement from the target are one key",
        identical((n - t) - (a - t), n - a),
        equation=8,
    )
    theta = sum(X ** (m * m) for m in range(-4, 5))
    boxes = [(size, target) for size in range(1, 5) for target in range(size)]
    axes = {(size, t): sum(X ** ((k - t) ** 2) for k in range(size)) for size, t in boxes}
    proof.check(
        "both sides of the target, one after the other, on every axis of up to 4 keys",
        all(
            identical(
                axes[size, t],
                1
                + sum(X ** (m * m) for m in range(1, t + 1))
                + sum(X ** (m * m) for m in range(1, size - t)),
            )
            for size, t in boxes
        ),
        equation=7,
    )
    proof.check(
        "ϑ minus the sum over an axis has positive terms only, on every axis of up to 4 keys",
        all(positive(theta - axis) for axis in axes.values()),
        equation=8,
    )
    for d in (1, 2, 3):
        sums, rests = sp.symbols(f"S:{d}", positive=True), sp.symbols(f"r:{d}", positive=True)
        larger = sp.Mul(*(s + r for s, r in zip(sums, rests, strict=True)))
        proof.check(
            f"smaller on every axis means a smaller product, d = {d}",
            positive(larger - sp.Mul(*sums)),
            equation=9,
        )
    total, rest = sp.symbols("S r", positive=True)
    proof.check(
        "a larger sum leaks more: (1 - 1/(S + r)) - (1 - 1/S) = r / (S (S + r)) > 0",
        equal(1 / total - 1 / (total + rest), rest / (total * (total + rest)))
        and positive(rest)
        and positive(total * (total + rest)),
        equation=10,
    )


def _prove_supremum(proof: Proof) -> None:
    """Centred boxes approach ε at an explicit rate: (11), (12)."""
    big, j = sp.symbols("N j", integer=True, nonnegative=True)
    y, power = sp.symbols("y p", positive=True)
    proof.check(
        "(N + 1 + j)^2 = (N + 1)^2 + j (2N + 3) + j (j - 1)",
        identical((big + 1 + j) ** 2, (big + 1) ** 2 + j * (2 * big + 3) + j * (j - 1)),
        equation=11,
    )
    proof.check(
        "j (j - 1) >= 0 for j = 0, 1 and 2 + j",
        all(nonnegative(i * (i - 1)) for i in (sp.Integer(0), sp.Integer(1), 2 + j)),
        equation=11,
    )
    proof.check(
        "the geometric sum, one more term (p = y^J)",
        equal((1 - power) / (1 - y) + power, (1 - power * y) / (1 - y)),
        equation=11,
    )
    a, b, a_power, b_power = sp.symbols("a b A B", positive=True)
    proof.check(
        "1/b^(d+1) - 1/a^(d+1) = (1/b)(1/b^d - 1/a^d) + (1/a^d)(1/b - 1/a)",
        equal(b_power / b - a_power / a, (b_power - a_power) / b + a_power * (1 / b - 1 / a)),
        equation=12,
    )
    proof.check("1/b - 1/a = (a - b)/(a b)", equal(1 / b - 1 / a, (a - b) / (a * b)), equation=12)


def _prove_size(proof: Proof) -> None:
    """2 d x / (1 + 2 d x) < ε < 2 d x / (1 - x^3): (14)."""
    m = sp.Symbol("m", integer=True, nonnegative=True)
    y, u, d = sp.symbols("y u d", positive=True)
    proof.check(
        "n^2 - 1 - 3 (n - 1) = (n - 1)(n - 2) >= 0 for n = 1, 2 and 3 + m",
        all(
            identical(n**2 - 1 - 3 * (n - 1), (n - 1) * (n - 2)) and nonnegative((n - 1) * (n - 2))
            for n in (sp.Integer(1), sp.Integer(2), 3 + m)
        ),
        equation=14,
    )
    proof.check(
        "one more axis raises 1 - (1 + y)^-d by u y / (1 + y), u = (1 + y)^-d, less than y",
        equal((1 - u / (1 + y)) - (1 - u), u * y / (1 + y))
        and equal(y - y / (1 + y), y**2 / (1 + y)),
        equation=14,
    )
    proof.check(
        "(1 + y)^(d + 1) >= 1 + (d + 1) y follows from (1 + y)^d >= 1 + d y",
        positive((1 + d * y) * (1 + y) - (1 + (d + 1) * y)),
        equation=14,
    )


def _prove_floating_point(proof: Proof) -> None:
    """Why 1 - ϑ^-d cancels, and that the code's formula is an upper bound: (16) to (22)."""
    with precision(BITS):
        ln2 = arb.const_log2()
        proof.check(
            "ϑ - 1 is below 2^-53 at α = 38, above it at 37; the border is near 54 ln 2",
            theta_minus_one(38) < arb(2) ** -53 < theta_minus_one(37) and 37 < 54 * ln2 < 38,
            equation=16,
        )
    t, n = sp.symbols("t n", real=True)
    proof.check(
        "the square in the Fourier transform of exp(-α t^2) is completed",
        identical(
            -ALPHA * t**2 - 2 * sp.pi * sp.I * n * t,
            -ALPHA * (t + sp.pi * sp.I * n / ALPHA) ** 2 - sp.pi**2 * n**2 / ALPHA,
        ),
        equation=17,
    )
    y, z = sp.symbols("y z", positive=True)
    proof.check(
        "log(1 + y) and 1 - exp(-z) are concave and 0 at 0",
        all(
            sp.diff(function, variable, 2).is_negative is True and function.subs(variable, 0) == 0
            for function, variable in ((sp.log(1 + y), y), (1 - sp.exp(-z), z))
        ),
        equation=18,
    )
    _prove_large_sharpness(proof)
    _prove_small_sharpness(proof)
    _prove_rounded_up(proof)


U = Fraction(1, 2**53)  # the unit roundoff of float64
LIBRARY = 4 * U  # hypothesis: exp, expm1, log, log1p, pow are within two units in the last place
LEAST = ball(Fraction(314, 100))  # a lower bound of both decays, α >= π and π^2/α > π


def compound(*errors: Fraction) -> Fraction:
    """The relative error of a product, or of a chain, of factors 1 + e with |e| <= the errors."""
    total = Fraction(1)
    for error in errors:
        total *= 1 + error
    return total - 1


def _prove_large_sharpness(proof: Proof) -> None:
    """For π <= α <= 800 the formula is within 15 u: (19)."""
    p = sp.Symbol("p", nonnegative=True)
    proof.check(
        "α exp(-α) and α exp(-8 α) fall for α = 1 + p",
        all(
            nonnegative(
                -(sp.diff(ALPHA * sp.exp(-k * ALPHA), ALPHA) * sp.exp(k * ALPHA)).subs(ALPHA, 1 + p)
            )
            for k in (1, 8)
        ),
        equation=19,
    )
    with precision(BITS):
        x = (-LEAST).exp()  # exp(-3.14); for larger α both comparisons only become easier
        proof.check(
            "the rounding of 9 α moves its term by less than 2^-20 u x",
            19 * LEAST * x**8 < ball(Fraction(1, 2**20)),
            equation=19,
        )
        proof.check(
            "the terms that are left out are below 2^-100 x",
            x**24 / (1 - x**11) < ball(Fraction(1, 2**100)),
            equation=19,
        )
    terms = LIBRARY + U / 2**20 + Fraction(1, 2**100)
    proof.check(
        "four exponentials, their sum, log1p, the product by d, expm1: within 15 u",
        compound(terms, U, LIBRARY, U, LIBRARY) <= 15 * U,
        equation=19,
    )


def _prove_small_sharpness(proof: Proof) -> None:
    """For α < π the formula is within 50 u: (20)."""
    n = sp.Symbol("n")
    cubes = (n**2, -3 * (n - 1) ** 2, 3 * (n - 2) ** 2, -((n - 3) ** 2))
    proof.check(
        "(1 - y)^3 times the sum of n^2 y^(n - 1) is 1 + y, coefficient by coefficient",
        identical(sum(cubes), 0)
        and sum(cubes[:1]).subs(n, 1) == 1
        and sum(cubes[:2]).subs(n, 2) == 1,
        equation=20,
    )
    tail, slope, log_theta = Fraction(88, 1000), Fraction(28, 100), Fraction(828, 10000)
    with precision(BITS):
        proof.check(
            "float64's π is within u/2", abs(ball(pi) / arb.pi() - 1) < ball(U / 2), equation=20
        )
        x = (-LEAST).exp()
        proof.check(
            "for β >= 3.14: 2 x/(1 - x^3) < 0.088 and 2 β x (1 + x^3)/(1 - x^3)^3 < 0.28",
            2 * x / (1 - x**3) < ball(tail)
            and 2 * LEAST * x * (1 + x**3) / (1 - x**3) ** 3 < ball(slope),
            equation=20,
        )
        proof.check(
            "log ϑ > 0.0828 for α <= π",
            theta_minus_one(arb.pi()).log1p() > ball(log_theta),
            equation=20,
        )
    beta = compound(U / 2, U / 2, LIBRARY, U)  # π twice, its square, the quotient
    second_order = 1 + Fraction(1, 2**20)
    series = (
        slope * beta + tail * compound(LIBRARY + U / 2**20 + Fraction(1, 2**100), U)
    ) * second_order
    absolute = series + tail * LIBRARY + compound(U / 2, U) * second_order / 2
    relative = compound(absolute / log_theta + LIBRARY, U, U)
    proof.check(
        "both logarithms, their sum and the product by d: within 46 u",
        relative <= 46 * U,
        equation=20,
    )
    proof.check("then expm1: within 50 u", compound(relative, LIBRARY) <= 50 * U, equation=20)


def _prove_rounded_up(proof: Proof) -> None:
    """The factor 1 + 2^-46 and 32 d of the smallest float64 make it an upper bound: (21), (22)."""
    up, low, high = 1 + 128 * U, 1 - 50 * U, 1 + 50 * U
    proof.check(
        "(1 - 50 u)(1 + 2^-46)(1 - u)^2 >= 1 and (1 + 50 u)(1 + 2^-46)(1 + u)^2 <= 1 + 2^-45",
        low * up * (1 - U) ** 2 >= 1 and high * up * (1 + U) ** 2 <= 1 + 256 * U,
        equation=21,
    )
    m = sp.Symbol("m", nonnegative=True)
    proof.check(
        "underflow: 19 d + 4 < 32 d, and with 32 d below 64 d, for d = 1 + m",
        positive(32 * (1 + m) - (19 * (1 + m) + 4))
        and positive((64 - 32) * (1 + m) - (19 * (1 + m) + 4)),
        equation=21,
    )
    z = sp.Symbol("z", positive=True)
    proof.check(
        "z exp(z) <= (1 + z)(exp(z) - 1), since exp(z) >= 1 + z",
        identical((1 + z) * (sp.exp(z) - 1) - z * sp.exp(z), sp.exp(z) - (1 + z))
        and sp.diff(sp.exp(z) - (1 + z), z, 2).is_positive is True
        and all(f.subs(z, 0) == 0 for f in (sp.exp(z) - (1 + z), sp.exp(z) - 1)),
        equation=22,
    )
    y = sp.Symbol("y", nonnegative=True)
    difference = y * sp.exp(y) - (sp.exp(y) - 1)
    proof.check(
        "exp(y) - 1 <= y exp(y): equal at 0, and the difference has derivative y exp(y) >= 0",
        difference.subs(y, 0) == 0
        and identical(sp.diff(difference, y), y * sp.exp(y))
        and nonnegative(y * sp.exp(y)),
        equation=22,
    )
    terms = LIBRARY + U / 2**20 + Fraction(1, 2**100)
    proof.check(
        "π <= α: four exponentials, their sum, log1p and the product by d: within 46 u",
        compound(terms, U, LIBRARY, U) <= 46 * U,
        equation=22,
    )
    with precision(BITS):
        proof.check(
            "exp(46 u z) < 1 + 2^-30 for z <= 700",
            (46 * 700 * ball(U)).exp() < ball(1 + Fraction(1, 2**30)),
            equation=22,
        )
    # With w = 1 + z: 46 u w of the argument, 4 u of expm1, 2^-46 w of what rounds up, itself of a
    # computed argument and sum, and three more roundings. A polynomial of degree 2 whose factor of
    # w^2 is negative is least at an end.
    error, up_by = 46 * U, 128 * U
    ends = (1, 701)
    proof.check(
        "from below: (1 - 46 u w)(1 + 2^-46 (1 - 46 u)(1 - u) w)(1 - 4 u)(1 - u)^3 >= 1 at w = 1 "
        "and 701, and its factor of w^2 is negative",
        all(
            (1 - error * w) * (1 + up_by * (1 - error) * (1 - U) * w) * (1 - LIBRARY) * (1 - U) ** 3
            >= 1
            for w in ends
        )
        and -error * up_by < 0,
        equation=22,
    )
    risen, factor = error * (1 + Fraction(1, 2**30)), up_by * (1 + error) * (1 + U)
    proof.check(
        "from above: 1 + 2^-45 w less (1 + 46 u (1 + 2^-30) w)(1 + 2^-46 (1 + 46 u)(1 + u) w)"
        "(1 + 4 u)(1 + u)^3 >= 0 at w = 1 and 701, and its factor of w^2 is negative",
        all(
            1 + 256 * U * w >= (1 + risen * w) * (1 + factor * w) * (1 + LIBRARY) * (1 + U) ** 3
            for w in ends
        )
        and -risen * factor < 0,
        equation=22,
    )
