"""Drops, gaps and resonances of rotations, as balls that provably contain them.

The equations are those of `rotations_select_shifts_without_resonance`. The gap of a range is found
by a search that leaves nothing out: frequency after frequency, from the slowest on, only those
distances are kept that it turns by nearly whole turns.
"""

from collections.abc import Sequence
from fractions import Fraction

from flint import arb

from theory.tools.theta import Exact, ball

__all__ = [
    "candidates",
    "dirichlet_bound",
    "drop",
    "first_resonance",
    "geometric_bound",
    "least_drop",
    "nearly_returns",
    "standard",
]


def standard(count: int = 8) -> tuple[arb, ...]:
    """Balls around 10000^(-f/count), the usual frequencies of 2 count components."""
    return tuple(arb(10000) ** (-arb(f) / count) for f in range(count))


def drop(
    distance: int, frequencies: Sequence[Exact], amplitudes: Sequence[Exact] | None = None
) -> arb:
    """A ball around G(n) = Σ 2 a_f sin²(θ_f n / 2); equation (4)."""
    given = [1] * len(frequencies) if amplitudes is None else amplitudes
    terms = (
        2 * ball(a) * (ball(t) * distance / 2).sin() ** 2
        for a, t in zip(given, frequencies, strict=True)
    )
    return sum(terms, arb(0))


def candidates(
    frequencies: Sequence[Exact],
    reach: int,
    bound: Exact,
    amplitudes: Sequence[Exact] | None = None,
) -> list[int]:
    """Distances 1 <= n <= reach, all those with G(n) <= bound among them; equation (14).

    Each cosine alone has to be within bound / a_f of 1: θ_f n is within arccos(1 - bound / a_f) of
    a whole number of turns. Slow frequencies come first, and leave few intervals to the others.
    """
    given = [1] * len(frequencies) if amplitudes is None else amplitudes
    intervals = [(1, reach)]
    for theta, amplitude in sorted(
        ((ball(t), ball(a)) for t, a in zip(frequencies, given, strict=True)),
        key=lambda pair: float(pair[0]),
    ):
        allowed = ball(bound) / amplitude
        if not allowed < 2:
            continue  # this frequency rules nothing out
        width, turn = (1 - allowed).acos() / theta, 2 * arb.pi() / theta
        kept: list[tuple[int, int]] = []
        for low, high in intervals:
            for k in range(_floor((low - width) / turn), _ceiling((high + width) / turn) + 1):
                first = max(low, _floor(k * turn - width))
                last = min(high, _ceiling(k * turn + width))
                if kept and first <= kept[-1][1]:
                    first = kept[-1][1] + 1
                if first <= last:
                    kept.append((first, last))
        intervals = kept
    return [n for low, high in intervals for n in range(low, high + 1)]


def _floor(x: arb) -> int:
    """An integer that is at most the floor of every number of the ball."""
    return _whole(x.lower().floor())


def _ceiling(x: arb) -> int:
    """An integer that is at least the ceiling of every number of the ball."""
    return _whole(x.upper().ceil())


def _whole(x: arb) -> int:
    found = x.unique_fmpz()
    assert found is not None
    return int(found)


def least_drop(
    frequencies: Sequence[Exact], reach: int, amplitudes: Sequence[Exact] | None = None
) -> arb:
    """A ball around the gap g(R), R = reach: the least G(n) over 1 <= n <= R."""
    first = min((drop(n, frequencies, amplitudes) for n in range(1, min(reach, 64) + 1)), key=float)
    found = candidates(frequencies, reach, first.upper(), amplitudes)
    least = first
    for n in found:
        least = least.min(drop(n, frequencies, amplitudes))
    return least


def first_resonance(turns: Sequence[Fraction]) -> int:
    """The least n that makes every n p_f / q_f whole, by trying; equation (8)."""
    n = 1
    while any((n * turn).denominator != 1 for turn in turns):
        n += 1
    return n


def nearly_returns(turns: Sequence[Fraction], boxes: int) -> bool:
    """Whether some n <= Q^F brings all angles within less than 1/Q of a turn; equation (9)."""
    return any(
        all(min(n * turn % 1, -n * turn % 1) < Fraction(1, boxes) for turn in turns)
        for n in range(1, boxes ** len(turns) + 1)
    )


def dirichlet_bound(total: Exact, count: int, reach: int) -> arb:
    """8π² A R^(-2/F), which no gap exceeds; equation (9)."""
    return 8 * arb.pi() ** 2 * ball(total) * arb(reach) ** (-arb(2) / count)


def geometric_bound(first: Exact, ratio: Exact, least: Exact = 1) -> arb:
    """a (1 - cos min(θ_0, ρπ)), which frequencies θ_0 ρ^f keep up to π/θ_min; equation (12)."""
    angle = ball(first).min(ball(ratio) * arb.pi())
    return 2 * ball(least) * (angle / 2).sin() ** 2
