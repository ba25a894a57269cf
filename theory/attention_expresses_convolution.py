"""T3 (Theorem 1). Attention expresses convolution."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import BITS, ball, precision

__all__ = ["THEOREM", "coefficients", "largest_error", "prove", "sufficient_sharpness"]

Point = tuple[int, ...]

THEOREM = Theorem(
    slug="attention_expresses_convolution",
    number="T3",
    source="Theorem 1",
    title="Attention expresses convolution",
    gist="the paper's main theorem, with a rate",
    claim=(
        "A multi-head self-attention layer with quadratic scores and one head for every tap of the "
        "kernel expresses any convolution to any accuracy, in every dimension. "
        "Over the reals |MHSA(X) − Conv(X)| in channel o is at most "
        "ε(α) Σ_δ Σ_c |W_δ[c, o]| (max X_c − min X_c), the range taken over the padded image, and "
        "the sharpness α = ln(1 + 2dV/η) makes it less than η if V > 0 bounds the double sum. "
        "On given keys the largest error at a query, over all images whose channels range over "
        "R_c, is ½ Σ_c R_c Σ_k |Σ_h (a^h_k − [k = t_h]) W_h[c, o]|."
    ),
    hypotheses=(
        "q + δ is a key for every query q and every offset δ (borders are padded keys)",
        "one head for every offset, with Δ_h that offset: N_h is the number of taps",
        "D_p >= d + 1 and D_h >= min(D_in, D_out)",
        "real arithmetic, and α > 0",
    ),
    notation={
        "ε(α)": "1 − ϑ(e^−α)^−d, the leak of T2",
        "a^h_k": "the weight that head h gives to key k, at one query: nonnegative, of sum 1",
        "t_h = q + Δ_h": "the target of head h",
        "R_c = max X_c − min X_c": "the range of channel c over all keys, padding included",
        "V": "a bound on Σ_δ Σ_c |W_δ[c, o]| R_c for every o",
        "η": "the accuracy asked for",
    },
    proof_idea=(
        "By T1 the layer with one-hot heads is the convolution, so the error is what each head "
        "reads off its target. By T2 that is a share below ε of its attention, and each "
        "misread pixel is off by at most the range of its channel. Written as one sum over keys, "
        "the error is a combination of pixels whose coefficients add up to 0, largest where each "
        "pixel is at the end of the range that its coefficient's sign asks for."
    ),
    references=("arXiv:1911.03584, Theorem 1",),
    objects=(
        "constructions.attention_from_conv",
        "constructions.certify",
        "constructions.MultiHeadSelfAttention",
    ),
)


def sufficient_sharpness(
    accuracy: Fraction, dimension: int, variation: Fraction, *, bits: int = BITS
) -> arb:
    """A ball around α = ln(1 + 2 d V / η), by equation (9) enough for an error of η."""
    with precision(bits):
        return ball(2 * dimension * variation / accuracy).log1p()


def largest_error(
    rows: Sequence[Mapping[Point, arb]], targets: Sequence[Point], weights: Sequence[int]
) -> arb:
    """A ball around the largest error at one query, one channel of range 1: equation (11).

    Args:
        rows: The weight of every key in each head, of sum 1.
        targets: The key that each head should attend.
        weights: The matrix of each head, 1 x 1.
    """
    return sum((abs(c) for c in coefficients(rows, targets, weights).values()), arb(0)) / 2


def coefficients(
    rows: Sequence[Mapping[Point, arb]], targets: Sequence[Point], weights: Sequence[int]
) -> dict[Point, arb]:
    """What each pixel is multiplied by in the error, a ball; arguments as in `largest_error`."""
    return {
        key: sum(
            (
                (row[key] - int(key == target)) * weight
                for row, target, weight in zip(rows, targets, weights, strict=True)
            ),
            arb(0),
        )
        for key in rows[0]
    }


def matrix(name: str, rows: int, columns: int) -> sp.Matrix:
    """A matrix of distinct commuting symbols."""
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"{name}_{i}{j}"))


def padded(block: sp.Matrix, rows: int, columns: int) -> sp.Matrix:
    """The matrix, extended by zeros to the given shape."""
    return sp.Matrix(
        rows, columns, lambda i, j: block[i, j] if i < block.rows and j < block.cols else 0
    )


def prove() -> tuple[Step, ...]:
    """Prove T3: equations (2) to (12) of its page."""
    proof = Proof()
    _prove_parameters(proof)
    _prove_error(proof)
    _prove_accuracy(proof)
    _prove_largest_error(proof)
    return proof.steps


def _prove_parameters(proof: Proof) -> None:
    """The weights of the construction, in the paper's layer: (2), (3)."""
    alpha = sp.Symbol("alpha", positive=True)
    for d in (1, 2, 3):
        key, query, content = matrix("x", 1, 2), matrix("y", 1, 2), matrix("u", d + 1, 1)
        delta, shift = sp.Matrix(sp.symbols(f"delta:{d}")), sp.Matrix(sp.symbols(f"Delta:{d}"))
        encoding = sp.Matrix([delta.dot(delta), *delta])
        vector = -alpha * sp.Matrix([1, *(-2 * shift)])

        def score(
            w_query: sp.Matrix,
            w_key: sp.Matrix,
            w_position: sp.Matrix,
            bias: sp.Matrix,
            *,
            key: sp.Matrix = key,
            query: sp.Matrix = query,
            encoding: sp.Matrix = encoding,
            vector: sp.Matrix = vector,
        ) -> sp.Matrix:
            """All four terms: content, query-position, key bias, position."""
            return (
                query * w_query * w_key.T * key.T
                + query * w_query * w_position * encoding
                + bias.T * w_key.T * key.T
                + vector.T * w_position * encoding
            )

        difference = delta - shift
        proof.check(
            f"W_qry = W_key = 0 and W^_key = I leave -α |δ - Δ|^2 + const, d = {d}",
            identical(
                score(sp.zeros(2, d + 1), sp.zeros(2, d + 1), sp.eye(d + 1), content),
                sp.Matrix([[-alpha * difference.dot(difference) + alpha * shift.dot(shift)]]),
            ),
            equation=2,
        )
    proof.check(
        "W_val W_out = W for D_in and D_out up to 3, and every D_h from the smaller of them to 4",
        all(
            identical(
                (padded(sp.eye(n), n, h) if n < m else padded(matrix("w", n, m), n, h))
                * (padded(matrix("w", n, m), h, m) if n < m else padded(sp.eye(m), h, m)),
                matrix("w", n, m),
            )
            for n, m in product((1, 2, 3), repeat=2)
            for h in range(min(n, m), 5)
        ),
        equation=3,
    )


def weights(
    head: int, keys: Sequence[tuple[int, ...]], target: tuple[int, ...]
) -> dict[tuple[int, ...], sp.Expr]:
    """Symbolic weights of sum 1: free off the target, and one minus their sum on it."""
    off = {k: sp.Symbol(f"a{head}_{'_'.join(map(str, k))}") for k in keys if k != target}
    return {**off, target: 1 - sum(off.values())}


def _prove_error(proof: Proof) -> None:
    """The error is what heads read off their targets, hence its bound: (4) to (8)."""
    for d in (1, 2, 3):
        keys = list(product(range(2), repeat=d))
        taps = keys[: 2 + d]  # any set of offsets; the query stands at 0, so targets are offsets
        image = {k: matrix("x" + "".join(map(str, k)), 1, 2) for k in keys}
        kernel = {t: matrix("w" + "".join(map(str, t)), 2, 2) for t in taps}
        rows = [weights(h, keys, t) for h, t in enumerate(taps)]
        bias = matrix("b", 1, 2)
        heads = [sum((row[k] * image[k] for k in keys), sp.zeros(1, 2)) for row in rows]
        layer = sp.Matrix.hstack(*heads) * sp.Matrix.vstack(*kernel.values()) + bias
        convolution = sum((image[t] * kernel[t] for t in taps), bias)
        misread = sum(
            (
                row[k] * (image[k] - image[t]) * kernel[t]
                for row, t in zip(rows, taps, strict=True)
                for k in keys
                if k != t
            ),
            sp.zeros(1, 2),
        )
        proof.check(
            f"layer - convolution = what heads read off their targets, d = {d}, all symbolic",
            identical(layer - convolution, misread),
            equation=4,
        )
    weight, scope, slack = sp.symbols("a R s", nonnegative=True)
    proof.check(
        "a_k y_k <= a_k R for y_k = R - s, and a_k y_k >= -a_k R for y_k = -R + s, s >= 0",
        nonnegative(weight * scope - weight * (scope - slack))
        and nonnegative(weight * (-scope + slack) + weight * scope),
        equation=5,
    )
    total, term = sp.symbols("A a", nonnegative=True)
    proof.check(
        "the bounds of the keys add up to (share off target) R, one key at a time",
        identical(total * scope + term * scope, (total + term) * scope),
        equation=5,
    )
    leak, excess = sp.symbols("m e", nonnegative=True)
    proof.check(
        "a share m <= ε = m + e of a head bounds its part by ε |W| R",
        nonnegative((leak + excess) * weight * scope - leak * weight * scope),
        equation=6,
    )
    bound, one_bound, gap, one_gap = sp.symbols("B b s t", nonnegative=True)
    proof.check(
        "errors within B and b sum to one within B + b, one head and channel at a time",
        nonnegative((bound + one_bound) - ((bound - gap) + (one_bound - one_gap)))
        and nonnegative((-bound + gap) + (-one_bound + one_gap) + (bound + one_bound)),
        equation=7,
    )
    share = sp.Symbol("m", positive=True)
    near, far = sp.symbols("p r")
    proof.check(
        "one tap, all pixels but the target equal: the error is exactly (share) W (range)",
        identical(
            ((1 - share) * near + share * far - near) * weight, share * weight * (far - near)
        ),
        equation=8,
    )


def _prove_accuracy(proof: Proof) -> None:
    """α = ln(1 + 2 d V / η) suffices: (9), and is nearly needed: (10)."""
    d, bound, eta, x = sp.symbols("d V eta x", positive=True)
    at = 1 / (1 + 2 * d * bound / eta)
    proof.check(
        "x = exp(-α) = 1/(1 + 2 d V/η)",
        identical(sp.exp(-sp.log(1 + 2 * d * bound / eta)), at),
        equation=9,
    )
    proof.check(
        "there, 2 d x/(1 - x) V = η",
        equal((2 * d * x / (1 - x)).subs(x, at) * bound, eta),
        equation=9,
    )
    proof.check(
        "1 - x^3 > 1 - x, so the leak is below 2 d x/(1 - x): 1 - x^3 - (1 - x) = x (1 - x)(1 + x)",
        identical((1 - x**3) - (1 - x), x * (1 - x) * (1 + x)),
        equation=9,
    )
    needed = eta / (2 * d * (bound - eta))
    proof.check(
        "2 d x V/(1 + 2 d x) = η at x = η/(2 d (V - η))",
        equal((2 * d * x / (1 + 2 * d * x)).subs(x, needed) * bound, eta),
        equation=10,
    )
    proof.check(
        "the two sharpnesses differ by the logarithm of 1 + (1 + 2 d) η/(2 d (V - η))",
        equal(
            (1 + 2 * d * bound / eta) / (2 * d * (bound - eta) / eta),
            1 + (1 + 2 * d) * eta / (2 * d * (bound - eta)),
        ),
        equation=10,
    )
    more = sp.Symbol("m", positive=True)
    proof.check(
        "and 2 d x/(1 + 2 d x) grows with x",
        equal(
            2 * d * (x + more) / (1 + 2 * d * (x + more)) - 2 * d * x / (1 + 2 * d * x),
            2 * d * more / ((1 + 2 * d * (x + more)) * (1 + 2 * d * x)),
        ),
        equation=10,
    )


def _prove_largest_error(proof: Proof) -> None:
    """The kernel's own supremum: (11), and two equal taps side by side: (12)."""
    keys = list(product(range(2), repeat=2))
    taps = keys[:3]
    rows = [weights(h, keys, t) for h, t in enumerate(taps)]
    image = {k: sp.Symbol("x" + "".join(map(str, k))) for k in keys}
    kernel = sp.symbols("w:3")
    gathered = {
        k: sum(w * (row[k] - int(k == t)) for row, t, w in zip(rows, taps, kernel, strict=True))
        for k in keys
    }
    misread = sum(
        w * row[k] * (image[k] - image[t])
        for row, t, w in zip(rows, taps, kernel, strict=True)
        for k in keys
        if k != t
    )
    proof.check(
        "three heads on a box of 2 x 2 keys: (4) is the sum of pixels times coefficients",
        identical(misread, sum(image[k] * gathered[k] for k in keys)),
        equation=11,
    )
    total, weight, off = sp.symbols("A w a")
    proof.check(
        "one more key: its weight comes off the target's, so coefficients still add up to 0",
        identical(weight * (((1 - total - off) - 1) + (total + off)), 0),
        equation=11,
    )
    size = sp.Symbol("c", nonnegative=True)
    place, rest = sp.symbols("s r", nonnegative=True)  # where a pixel is in its range, s + r = 1
    upper = (size + size) / 2, (size - size) / 2  # (|c| + c)/2 for the coefficients c and -c
    proof.check(
        "c s <= (|c| + c)/2 for either sign of c and 0 <= s <= 1, with equality at s = [c > 0]",
        nonnegative(upper[0] * (place + rest) - size * place)
        and nonnegative(upper[1] * (place + rest) - (-size) * place)
        and identical(upper[0], size * 1)
        and identical(upper[1], -size * 0),
        equation=11,
    )
    x, p, q, more = sp.symbols("x p q r", positive=True)
    one, other = 1 + x + p, 1 + x + q  # the sums of both heads: each has both taps among its keys
    proof.check(
        "1 - 1/S - x/S' = (x q + p + p q)/(S S') for S = 1 + x + p, S' = 1 + x + q: no tap gains",
        equal(1 - 1 / one - x / other, (x * q + p + p * q) / (one * other))
        and positive(x * q + p + p * q),
        equation=12,
    )
    proof.check(
        "the other keys have 1 - (1 + x)/S of a head, which grows with S",
        equal(1 - 1 / one - x / one, 1 - (1 + x) / one)
        and equal(
            (1 - (1 + x) / (one + more)) - (1 - (1 + x) / one),
            (1 + x) * more / (one * (one + more)),
        ),
        equation=12,
    )
