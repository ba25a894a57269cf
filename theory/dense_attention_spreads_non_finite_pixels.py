"""T9. Dense attention spreads a non-finite pixel to every query; a convolution does not.

New here: the arithmetic of IEEE Std 754-2019, clauses 6 and 7, on the classes of its numbers. The
page `docs/theorems/dense_attention_spreads_non_finite_pixels.md` numbers the equations.

The classes are finitely many, so every statement about one operation is checked on all of them;
sums of any length and order follow by induction over the additions.
"""

from collections.abc import Callable, Iterable
from enum import Enum
from itertools import product

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, identical

__all__ = ["FINITE", "NON_FINITE", "THEOREM", "Kind", "added", "multiplied", "prove"]


class Kind(Enum):
    """The classes of floating-point numbers that the standard's special cases distinguish."""

    NAN = "NaN"
    MINUS_INFINITY = "-inf"
    NEGATIVE = "negative"
    ZERO = "zero"
    POSITIVE = "positive"
    PLUS_INFINITY = "+inf"


NON_FINITE = frozenset({Kind.NAN, Kind.MINUS_INFINITY, Kind.PLUS_INFINITY})
FINITE = frozenset(Kind) - NON_FINITE
INFINITE = NON_FINITE - {Kind.NAN}
ONLY_NAN = frozenset({Kind.NAN})

SIGN = {
    Kind.MINUS_INFINITY: -1,
    Kind.NEGATIVE: -1,
    Kind.ZERO: 0,
    Kind.POSITIVE: 1,
    Kind.PLUS_INFINITY: 1,
}

THEOREM = Theorem(
    slug="dense_attention_spreads_non_finite_pixels",
    number="T9",
    source="",
    title="Dense attention spreads non-finite pixels",
    gist="where equality ends",
    claim=(
        "Dense attention spreads a non-finite pixel to every query, even with exactly one-hot "
        "weights. One infinite or NaN pixel among the keys makes the output non-finite at every "
        "query, for every output channel of the pixel's group. It is NaN at every query where some "
        "one-hot head looks at another key; with two heads or more on padded keys, whose targets "
        "differ, that is everywhere. The convolution is non-finite only where its window holds the "
        "pixel, so that the two differ at every other query."
    ),
    hypotheses=(
        "Arithmetic is that of IEEE 754, subnormal numbers kept or flushed to zero; sums run in "
        "any order.",
        "Attention weights, matrices and bias are finite; the weights depend on positions alone.",
        "For what stays finite: no partial sum of finite terms overflows.",
    ),
    notation={
        "X_{k,c}": "the pixel of key k in channel c",
        "A^h": "the weights of head h, one row for each query",
        "W_h": "the matrix of head h, zero between channels of different groups",
        "N": "the non-finite values: NaN and both infinities",
        "Ω": "the largest finite number of the format",
    },
    proof_idea=(
        "A non-finite number times any finite one, zero included, is non-finite, since 0·∞ is NaN; "
        "and a sum with a non-finite term is non-finite, since nothing finite cancels infinity and "
        "opposite infinities make NaN. Dense attention multiplies every pixel by a weight for "
        "every query; the convolution multiplies only the pixels of its window."
    ),
    references=("IEEE Std 754-2019, clauses 6.1, 6.2 and 7.2", "arXiv:1911.03584"),
    objects=(
        "constructions.attention_from_conv",
        "constructions.certify",
    ),
)


def multiplied(left: Kind, right: Kind, *, flush: bool = False) -> frozenset[Kind]:
    """The classes that a computed product can have, by the classes of its factors.

    A product of finite numbers may underflow to zero or overflow to infinity. With `flush`, a
    subnormal number may be read, or returned, as zero.
    """
    if flush:
        return _flushed(multiplied, left, right)
    if Kind.NAN in (left, right):
        return ONLY_NAN
    sign = SIGN[left] * SIGN[right]
    if INFINITE & {left, right}:
        return frozenset({_infinity(sign)}) if sign else ONLY_NAN
    return frozenset({Kind.ZERO, _finite(sign), _infinity(sign)} if sign else {Kind.ZERO})


def added(left: Kind, right: Kind, *, flush: bool = False) -> frozenset[Kind]:
    """The classes that a computed sum can have, by the classes of its terms; see `multiplied`."""
    if flush:
        return _flushed(added, left, right)
    if Kind.NAN in (left, right):
        return ONLY_NAN
    infinities = INFINITE & {left, right}
    if infinities:
        return infinities if len(infinities) == 1 else ONLY_NAN
    if Kind.ZERO in (left, right):
        return frozenset({right if left is Kind.ZERO else left})
    if left is right:
        return frozenset({left, _infinity(SIGN[left])})
    return FINITE


def prove() -> tuple[Step, ...]:
    """Establish every numbered equation of the page."""
    proof = Proof()
    _one_operation(proof)
    _spread(proof)
    _convolution(proof)
    return proof.steps


def _one_operation(proof: Proof) -> None:
    for flush in (False, True):
        flushing = "subnormals flushed" if flush else "subnormals kept"
        proof.check(
            f"finite times non-finite is non-finite ({flushing})",
            all(
                multiplied(a, x, flush=flush) <= NON_FINITE for a, x in product(FINITE, NON_FINITE)
            ),
            equation=1,
        )
        proof.check(
            f"zero times non-finite is NaN ({flushing})",
            all(multiplied(Kind.ZERO, x, flush=flush) == ONLY_NAN for x in NON_FINITE),
            equation=1,
        )
        proof.check(
            f"anything plus non-finite is non-finite ({flushing})",
            all(added(a, x, flush=flush) <= NON_FINITE for a, x in product(Kind, NON_FINITE)),
            equation=2,
        )
        proof.check(
            f"anything times, or plus, NaN is NaN ({flushing})",
            all(
                operation(a, Kind.NAN, flush=flush) == ONLY_NAN
                for a, operation in product(Kind, (multiplied, added))
            ),
            equation=2,
        )
        proof.check(
            f"both operations commute ({flushing}), so that the side of the operand is no matter",
            all(
                operation(a, b, flush=flush) == operation(b, a, flush=flush)
                for a, b, operation in product(Kind, Kind, (multiplied, added))
            ),
            equation=2,
        )


def _spread(proof: Proof) -> None:
    # A head sums A·X over the keys, the layer H·W over heads and channels of the group, then adds
    # the bias: in each sum one term is non-finite, and what stands beside it may be anything.
    seen = _possible(multiplied, FINITE, NON_FINITE)
    head = _possible(added, Kind, seen)
    mixed = _possible(multiplied, FINITE, head)
    proof.check(
        "every head's sum over the keys is non-finite in the pixel's channel",
        head <= NON_FINITE,
        equation=3,
    )
    proof.check(
        "the sum over heads and channels is non-finite, and so with the bias",
        _possible(added, Kind, _possible(added, Kind, mixed)) <= NON_FINITE,
        equation=4,
    )
    beside = _possible(added, Kind, _possible(multiplied, {Kind.ZERO}, NON_FINITE))
    proof.check(
        "a head that gives the pixel weight zero, and all that it is summed into, is NaN",
        beside == ONLY_NAN
        and _possible(added, Kind, _possible(multiplied, FINITE, beside)) == ONLY_NAN,
        equation=5,
    )
    query, first, second = sp.symbols("q Delta_1 Delta_2")
    proof.check(
        "the targets q + Δ_1 and q + Δ_2 differ by Δ_1 - Δ_2, whatever the query",
        identical((query + first) - (query + second), first - second),
        equation=5,
    )
    proof.check(
        "a head that looks at the pixel sees ±∞: 1·∞ = ∞, and ∞ plus finite numbers is ∞",
        all(multiplied(Kind.POSITIVE, x) == {x} == _possible(added, FINITE, {x}) for x in INFINITE),
        equation=6,
    )
    same_sign = {x: _possible(multiplied, {Kind.POSITIVE}, {x}) for x in INFINITE}
    other_sign = {x: _possible(multiplied, {Kind.NEGATIVE}, {x}) for x in INFINITE}
    proof.check(
        "matrix entries of one sign: the terms are one infinity, and so is their sum",
        all(
            len(terms) == 1 and _possible(added, terms, terms) == terms
            for x in INFINITE
            for terms in (same_sign[x], other_sign[x])
        ),
        equation=6,
    )
    proof.check(
        "a matrix entry of zero, or two of opposite signs: NaN",
        all(
            multiplied(Kind.ZERO, x) == ONLY_NAN
            and _possible(added, same_sign[x], other_sign[x]) == ONLY_NAN
            for x in INFINITE
        ),
        equation=6,
    )


def _convolution(proof: Proof) -> None:
    proof.check(
        "sums and products of finite numbers are finite, or overflow to an infinity",
        all(
            operation(a, b) <= FINITE | INFINITE
            for a, b, operation in product(FINITE, FINITE, (multiplied, added))
        ),
        equation=7,
    )
    # Two computed partial sums of m and n terms are at most s (1 + u)^m and t (1 + u)^n, s and t
    # the sums of the sizes of their terms. With M = (1 + u)^m and N = (1 + u)^n, both at least
    # 1 + u, their computed sum is at most (s M + t N)(1 + u) <= (s + t) M N.
    s, t, u, m, n = sp.symbols("s t u M N", nonnegative=True)
    proof.check(
        "(s + t) M N - (s M + t N)(1 + u) is a sum of products of non-negative factors",
        identical(
            (s + t) * m * n - (s * m + t * n) * (1 + u),
            s * m * (n - (1 + u)) + t * n * (m - (1 + u)),
        ),
        equation=8,
    )


def _possible(
    operation: Callable[[Kind, Kind], frozenset[Kind]], left: Iterable[Kind], right: Iterable[Kind]
) -> frozenset[Kind]:
    """Every class that the operation can give on two sets of classes."""
    return frozenset().union(*(operation(a, b) for a, b in product(left, right)))


def _flushed(
    operation: Callable[[Kind, Kind], frozenset[Kind]], left: Kind, right: Kind
) -> frozenset[Kind]:
    """The operation where a subnormal operand or result may become zero."""
    small = {Kind.NEGATIVE, Kind.POSITIVE}
    possible = _possible(
        operation,
        {left, Kind.ZERO} if left in small else {left},
        {right, Kind.ZERO} if right in small else {right},
    )
    return possible | {Kind.ZERO} if possible & small else possible


def _finite(sign: int) -> Kind:
    return Kind.POSITIVE if sign > 0 else Kind.NEGATIVE


def _infinity(sign: int) -> Kind:
    return Kind.PLUS_INFINITY if sign > 0 else Kind.MINUS_INFINITY
