"""T17. Stock attention is convolution.

New here. Tokens of stock attention hold a pixel and where it stands; its projections do the rest.
"""

from fractions import Fraction
from itertools import product
from math import isqrt

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative, positive
from theory.tools.theta import BITS, precision

__all__ = ["FORMATS", "THEOREM", "largest_exact", "largest_rounded", "prove", "reach"]

THEOREM = Theorem(
    slug="stock_attention_is_convolution",
    number="T17",
    source="",
    title="Stock attention is convolution",
    gist="torch.nn.MultiheadAttention, unmodified: one token a pixel, zero padding by its zero key",
    claim=(
        "The multi-head attention of a stock library, unmodified and without mask or positional "
        "bias, computes any convolution of tokens [x, p, ‖p‖², 1, 0 …], one for each pixel. "
        "One head for each tap is enough, of dimension d + 2 or the smaller number of channels, "
        "and the rest of the layer is there as it is: scaled scores, concatenated heads, an output "
        "projection, with bias or without. A key of zeros pads with zeros, none replicates; "
        "strides and transposed convolutions are cross-attention. Computed weights are exactly "
        "one-hot on grids of bounded size: some 240 pixels a side in two dimensions and float32 "
        "for any head dimension, and 2,047 for one that is a power of 16."
    ),
    hypotheses=(
        "tokens hold [x, p, ‖p‖², 1, 0 …], p the integer point where a pixel stands, counted from "
        "the middle of the grid",
        "scores are dot products of projected queries and keys, divided by the root of the head "
        "dimension, whichever factor is scaled; weights are their softmax",
        "arithmetic is that of T8, in float32 or float64, sums in any order",
        "the border is made of zeros, with a key of zeros; or replicated, at spacing 1, without; "
        "or no target is beyond it",
    ),
    notation={
        "p, f(p)": "a point, and its features (p, ‖p‖², 1)",
        "N_h": "the linear map from features of a query to the name of its target",
        "α, c": "sharpness, and the score of a target",
        "E, H, D_h, D_v": "width of a token, heads, their dimension, and what a value needs of it",
        "Z": "the largest Σ_i (|k_i| + |q_i| + |Δ_i|)²",
        "n": "roundings that a part of a score meets, 2d + 14",
        "Θ'": "the gap from which computed weights are one-hot",
    },
    proof_idea=(
        "The name of q + Δ is linear in the features of q. What the scale divides by, the query "
        "projection multiplies by. On small grids rounding cannot close the gap, and on larger "
        "ones nothing is rounded where all constants are powers of two."
    ),
    references=("arXiv:1911.03584", "arXiv:1706.03762", "arXiv:2309.17453"),
    objects=("constructions.stock.multihead_attention", "constructions.Stock"),
)

ALPHA, HEIGHT = sp.symbols("alpha c", positive=True)
DIMENSIONS = (1, 2, 3)
FORMATS = {"float32": (24, 150, 512), "float64": (53, 1075, 4096)}
"""Bits, the threshold over ln 2 (T8), and the sharpness."""


def reach(size: int, shift: int, d: int) -> int:
    """Z of a grid of n pixels a side whose queries stand on it: coordinates from the middle."""
    return d * (2 * (size // 2) + shift) ** 2


def largest_rounded(bits: int, d: int) -> int:
    """The largest n + |Δ| a side with 8 n u (Z + 1) <= 1 - n u."""
    total = (2 * d + 14) * Fraction(1, 2**bits)
    return isqrt(int((1 - total) / (8 * total) - 1) // d)


def largest_exact(bits: int, d: int) -> int:
    """The largest n + |Δ| a side with 2 Z + 1 <= 2^p."""
    return isqrt((2**bits - 1) // (2 * d))


def prove() -> tuple[Step, ...]:
    """Prove T17: equations (1) to (9) of its page."""
    proof = Proof()
    _prove_names(proof)
    _prove_layer(proof)
    _prove_arithmetic(proof)
    _prove_sizes(proof)
    return proof.steps


def _vector(name: str, size: int, **signs: bool) -> sp.Matrix:
    return sp.Matrix(sp.symbols(f"{name}:{size}", real=True, **signs))


def _names(shift: sp.Matrix) -> sp.Matrix:
    """N_h, (d + 2) x (d + 2)."""
    d = len(shift)
    names = sp.zeros(d + 2, d + 2)
    for i in range(d):
        names[i, i], names[i, d + 1] = 2 * ALPHA, 2 * ALPHA * shift[i]
        names[d + 1, i] = -2 * ALPHA * shift[i]
    names[d, d + 1] = names[d + 1, d] = -ALPHA
    names[d + 1, d + 1] = HEIGHT - ALPHA * shift.dot(shift)
    return names


def _features(point: sp.Matrix) -> sp.Matrix:
    return sp.Matrix([*point, point.dot(point), 1])


def _prove_names(proof: Proof) -> None:
    """Scores from two linear maps, and the key of zeros: (1), (2)."""
    root = sp.Symbol("r", positive=True)
    for d in DIMENSIONS:
        k, q, shift = (_vector(name, d) for name in ("k", "q", "D"))
        name = root * _names(shift) * _features(q)
        target = q + shift
        proof.check(
            f"<r N f(q), f(k)> / r = c - α |k - (q + Δ)|², d = {d}",
            identical(name.dot(_features(k)) / root, HEIGHT - ALPHA * (k - target).dot(k - target)),
            equation=1,
        )
    m = sp.Symbol("m", nonnegative=True)
    above = sp.Rational(1, 2) * ALPHA
    proof.check(
        "c = α/2, squared distance 1 + m: target, key of zeros, others stand at α/2, 0, -α/2 - α m",
        identical(above - ALPHA * (1 + m), -above - ALPHA * m)
        and positive(above)
        and nonnegative(-above - (above - ALPHA * (1 + m))),
        equation=2,
    )
    j = sp.Symbol("j", nonnegative=True)
    proof.check(
        "c = 0, a target j beyond the edge: the edge is above the pixel 1 + m further in by α",
        nonnegative(-ALPHA * j**2 + ALPHA * (j + 1 + m) ** 2 - ALPHA),
        equation=2,
    )


def _prove_layer(proof: Proof) -> None:
    """Concatenated heads and projections of whole tokens: (3), (4)."""
    heads, keys, d_in, d_v, d_out, d_h = 2, 2, 2, 2, 3, 3
    width = heads * d_h
    x = sp.Matrix(keys, d_in, sp.symbols(f"x:{keys * d_in}"))
    rest = sp.Matrix(keys, width - d_in, sp.symbols(f"p:{keys * (width - d_in)}"))
    tokens = x.row_join(rest)
    bias = sp.Matrix(1, d_out, sp.symbols(f"b:{d_out}"))
    value = [sp.Matrix(d_in, d_v, sp.symbols(f"v{h}_:{d_in * d_v}")) for h in range(heads)]
    output = [sp.Matrix(d_v, d_out, sp.symbols(f"w{h}_:{d_v * d_out}")) for h in range(heads)]
    weights = [sp.Matrix(1, keys, sp.symbols(f"a{h}_:{keys}")) for h in range(heads)]
    concatenated = sp.zeros(1, width)
    projection = sp.zeros(width, width)
    for h in range(heads):
        w_v = sp.zeros(width, d_h)
        w_v[:d_in, :d_v] = value[h]
        concatenated[0, h * d_h : (h + 1) * d_h] = weights[h] * tokens * w_v
        projection[h * d_h : h * d_h + d_v, :d_out] = output[h]
    wanted = bias.row_join(sp.zeros(1, width - d_out))
    for h in range(heads):
        seen = weights[h] * x * value[h] * output[h]
        wanted += seen.row_join(sp.zeros(1, width - d_out))
    layer = concatenated * projection + bias.row_join(sp.zeros(1, width - d_out))
    proof.check(
        "two heads, two keys: the first D_out channels are b + Σ a x W_val W_out, the rest 0",
        identical(layer, wanted),
        equation=3,
    )
    for d in DIMENSIONS:
        k, first, q = (_vector(name, d) for name in ("k", "s", "q"))
        map_ = sp.zeros(d + 2, d + 2)
        for i in range(d):
            map_[i, d + 1] = 2 * ALPHA * first[i]
        map_[d, d + 1] = -ALPHA
        map_[d + 1, d + 1] = HEIGHT - ALPHA * first.dot(first)
        score = (map_ * _features(q)).dot(_features(k))
        proof.check(
            f"one head more names one key at every query, d = {d}",
            identical(score, HEIGHT - ALPHA * (k - first).dot(k - first))
            and not score.free_symbols & set(q),
            equation=4,
        )
    one = sp.zeros(1, d_h)
    one[0, 0] = 1
    carried = sp.zeros(d_h, d_out)
    carried[0, :] = bias
    proof.check("and a constant 1 times the bias is the bias", one * carried == bias, equation=4)


def _prove_arithmetic(proof: Proof) -> None:
    """Parts of a score, exact and rounded: (5) to (8)."""
    for d in DIMENSIONS:
        k, q, shift = (_vector(name, d, nonnegative=True) for name in ("k", "q", "D"))
        # The moduli of all products, for coordinates that are moduli themselves.
        name = sp.zeros(d + 2, 1)
        for i in range(d):
            name[i] = 2 * ALPHA * q[i] + 2 * ALPHA * shift[i]
            name[d + 1] += 2 * ALPHA * shift[i] * q[i] + ALPHA * shift[i] ** 2
        name[d] = ALPHA
        name[d + 1] += ALPHA * q.dot(q) + HEIGHT
        total = sum((k[i] + q[i] + shift[i]) ** 2 for i in range(d))
        proof.check(
            f"the moduli of all parts add up to α Σ (|k| + |q| + |Δ|)² + c, d = {d}",
            identical(name.dot(_features(k)), ALPHA * total + HEIGHT),
            equation=5,
        )
    size = sp.Symbol("Z", positive=True)
    proof.check(
        "in units of α/2 they are integers that add up to 2 Z + 1 with a key of zeros",
        identical((ALPHA * size + ALPHA / 2) / (ALPHA / 2), 2 * size + 1),
        equation=6,
    )
    proof.check(
        "16^e has the root 4^e, whose inverse is the square of 2^-e, for e up to 8",
        all(
            (4**e) ** 2 == 16**e and Fraction(1, 2**e) ** 2 == Fraction(1, 4**e)
            for e in range(1, 9)
        ),
        equation=6,
    )
    d, u, n = sp.symbols("d u n", positive=True)
    proof.check(
        "roundings: 2 of a weight, a product, d + 1 sums; 8 of the scale; a product, d + 1 sums",
        identical(2 + 1 + (d + 1) + 8 + 1 + (d + 1), 2 * d + 14),
        equation=7,
    )
    slack = sp.Symbol("s", nonnegative=True)
    # 8 g (Z + 1) = 1 - s, with g = n u / (1 - n u).
    error = (1 - slack) / (8 * (size + 1))
    left = ALPHA / 2 - 2 * error * ALPHA * (size + sp.Rational(1, 2))
    excess = sp.together(left - ALPHA / 4)
    proof.check(
        "8 g (Z + 1) <= 1 leaves α/2 - 2 g α (Z + 1/2) >= α/4",
        nonnegative(sp.numer(excess)) and positive(sp.denom(excess)),
        equation=7,
    )
    proof.check(
        "g = n u / (1 - n u): 8 g (Z + 1) <= 1 says 8 n u (Z + 1) <= 1 - n u",
        identical(
            sp.cancel((1 - 8 * (n * u / (1 - n * u)) * (size + 1)) * (1 - n * u)),
            1 - n * u - 8 * n * u * (size + 1),
        ),
        equation=7,
    )
    count = 20
    for bits, _, _ in FORMATS.values():
        unit = Fraction(1, 2**bits)
        proof.check(
            f"(1 + u)^n - 1 <= n u / (1 - n u), and below by less, n up to {count}, {bits} bits",
            all(
                (1 + unit) ** m - 1 <= m * unit / (1 - m * unit)
                and 1 - (1 - unit) ** m <= m * unit / (1 - m * unit)
                for m in range(1, count + 1)
            ),
            equation=7,
        )
    with precision(BITS):
        for name, (bits, threshold, sharpness) in FORMATS.items():
            theta = threshold * arb.const_log2()
            certified = (theta + arb(40) / 2**bits) / (1 - arb(2) / 2**bits)
            proof.check(
                f"{name}: {sharpness} is the least power of two of at least four times Θ'",
                4 * certified < sharpness and sharpness / 2 < 4 * theta,
                equation=8,
            )


def _prove_sizes(proof: Proof) -> None:
    """How many pixels that is: (9)."""
    proof.check(
        "counted from ⌊(first + last)/2⌋, n points reach ⌊n/2⌋, n up to 50",
        all(max(abs(0 - (n - 1) // 2), abs(n - 1 - (n - 1) // 2)) == n // 2 for n in range(1, 51)),
        equation=9,
    )
    wanted = {
        "float32": ((362, 2896), (241, 2047), (186, 1672)),
        "float64": ((8388607, 67108863), (5592405, 47453132), (4331858, 38745320)),
    }
    for (name, sizes), d in product(wanted.items(), DIMENSIONS):
        bits = FORMATS[name][0]
        rounded, exact = sizes[d - 1]
        proof.check(
            f"{name}, d = {d}: n + |Δ| up to {rounded} for any head dimension, {exact} exactly",
            largest_rounded(bits, d) == rounded and largest_exact(bits, d) == exact,
            equation=9,
        )
