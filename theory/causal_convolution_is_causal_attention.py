"""T22. Causal convolution is causal attention.

New here. A target of a causal convolution is visible under a causal mask, if it is there at all.
"""

from itertools import product

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative, positive

__all__ = ["THEOREM", "prove"]

THEOREM = Theorem(
    slug="causal_convolution_is_causal_attention",
    number="T22",
    source="",
    title="Causal convolution is causal attention",
    gist="a causal mask takes no target away; zeros before the first token need a token of zeros",
    claim=(
        "Under a causal mask the heads of a causal convolution attend as they do without it, and "
        "the left border replicates the first token. "
        "With a token of zeros before the first one, or a key of zeros that the mask leaves "
        "visible, it is made of zeros. One of them is needed: a causal layer whose rows sum to "
        "one is the convolution of zero-padded tokens only if the taps that look back by less "
        "than the length of the line are all zero. Gaps and sizes are those without a mask. "
        "Positions are needed as well: a causal layer without them errs by at least half of the "
        "moduli of the taps that look back, on some line with values in [0, 1]."
    ),
    hypotheses=(
        "one dimension, spacing 1: keys and queries are the points 0 to n - 1, queries any of them",
        "shifts are integers Δ <= 0; a query sees the keys k <= q, and a token or key of zeros",
        "for attention: squared distances, and the hypotheses of T17",
        "for the need of zeros: W_0 and the other taps are any matrices, and so are those of the "
        "layer; its rows sum to one over the keys that it sees, with content or without",
        "without positions: one layer, whose output at q is a function of the token at q and of "
        "the multiset of the tokens before it; at least as many of these are beside the taps that "
        "look back as at them",
    ),
    notation={
        "t = q + Δ": "the target",
        "R": "reach of the kernel, dilation times (K - 1)",
        "α": "sharpness",
        "W_Δ": "matrix of the tap at Δ",
        "n": "tokens",
    },
    proof_idea=(
        "A target is never later than its query. If it is before the first token, that one is the "
        "nearest of those that are seen, and all that the first query sees. Constants go to "
        "constants where rows sum to one."
    ),
    references=("arXiv:1609.03499", "arXiv:1706.03762", "arXiv:2309.17453"),
    objects=("constructions.stock.multihead_attention",),
)

ALPHA = sp.Symbol("alpha", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T22: equations (1) to (7) of its page."""
    proof = Proof()
    back, more = sp.symbols("b m", nonnegative=True)
    query = sp.Symbol("q", nonnegative=True)
    proof.check(
        "q - (q + Δ) = -Δ >= 0: a target is not later than its query",
        identical(query - (query - back), back) and nonnegative(back),
        equation=1,
    )
    j = sp.Symbol("j", positive=True)
    proof.check(
        "j before the first token: token 1 + m is lower than the first by α (1 + m)(1 + m + 2j)",
        identical(
            -ALPHA * j**2 + ALPHA * (1 + more + j) ** 2,
            ALPHA * (1 + more) * (1 + more + 2 * j),
        )
        and positive(ALPHA * (1 + more) * (1 + more + 2 * j) - ALPHA),
        equation=2,
    )
    half = ALPHA / 2
    proof.check(
        "scores raised by α/2: zeros are α/2 below a target, and above every other token by α/2",
        positive(half - 0) and nonnegative(0 - (half - ALPHA * (1 + more)) - half),
        equation=3,
    )
    for length, taps in product(range(1, 6), range(1, 6)):
        matrices = sp.symbols(f"W:{taps}", commutative=False)
        pixel = sp.Symbol("X", commutative=False)
        outputs = [
            sum((pixel * matrices[b] for b in range(taps) if b <= q), sp.Integer(0))
            for q in range(length)
        ]
        steps = [outputs[q] - outputs[q - 1] for q in range(1, length)]
        wanted = [pixel * matrices[q] if q < taps else sp.Integer(0) for q in range(1, length)]
        proof.check(
            f"{length} equal tokens, {taps} taps: from q - 1 to q the output changes by X W at -q",
            all(identical(a, b) for a, b in zip(steps, wanted, strict=True)),
            equation=4,
        )
    n, reach, stride, spare = sp.symbols("n R s r", integer=True, positive=True)
    proof.check(
        "n + R padded tokens and reach R: ⌊(n + R - R - 1)/s⌋ + 1 outputs, n for stride 1",
        identical((n + reach) - reach - 1, n - 1),
        equation=5,
    )
    proof.check(
        "with n - 1 = s m + r the last query, s m, is a token",
        identical((stride * more + spare) - stride * more, spare) and nonnegative(spare),
        equation=5,
    )
    _prove_positions(proof)
    return proof.steps


def _prove_positions(proof: Proof) -> None:
    """Two lines with the same tokens, and what lies between: (6), (7)."""
    for taps, channels in product((1, 2, 3), (1, 2)):
        signs = list(product((1, -1), repeat=taps * channels))
        moduli = sp.symbols(f"w:{taps * channels}", positive=True)
        differences = set()
        for chosen in signs:
            weights = [s * w for s, w in zip(chosen, moduli, strict=True)]
            first = [1 if s > 0 else 0 for s in chosen]
            second = [1 - v for v in first]
            line = [first[i : i + channels] for i in range(0, len(first), channels)]
            other = [second[i : i + channels] for i in range(0, len(second), channels)]
            # Far from the taps each line has what the other has at them.
            assert sorted(line + other) == sorted(other + line)
            gap = sum(
                (w * (a - b) for w, a, b in zip(weights, first, second, strict=True)), sp.Integer(0)
            )
            differences.add(sp.expand(gap - sum(moduli)))
        proof.check(
            f"{taps} taps that look back, {channels} channels, all signs: two lines of the same "
            "tokens, whose convolutions differ by the sum of the moduli",
            differences == {sp.Integer(0)},
            equation=6,
        )
    weight, value = sp.Symbol("w", real=True), sp.Symbol("x", real=True)
    proof.check(
        "w x is within |w|/2 of w/2 for x in [0, 1]: linear, and so at both ends",
        identical(weight * value - weight / 2, weight * (value - sp.Rational(1, 2)))
        and all((sp.Rational(end) - sp.Rational(1, 2)) ** 2 == sp.Rational(1, 4) for end in (0, 1)),
        equation=7,
    )
