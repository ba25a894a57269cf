"""Counting: how many heads a convolution needs, without building any.

Theorem: `heads_count_the_rank_of_the_kernel`; `head_dimension_is_block_term_rank` of heads of one
dimension. All work is in the N taps: of a tap's numbers as many
columns are looked at as the kernel has rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from constructions.formats import unit_roundoff
from constructions.geometry.window import WindowGeometry
from constructions.heads.narrow import bounds, check_head_dim, roundoff_of
from constructions.heads.rational import (
    Dictionary,
    RationalCertificate,
    alternative,
    is_regular,
)
from constructions.sources import CONVOLUTIONS, AnyConvolution, Stencil, stencil_of

EXACT = 2**10
"""Multiples of a common power of two up to here are data whose rank is meant as it is; of larger
ones, such as trained weights, the last bits are noise."""

TURNS = 400
"""Of projections, before pivoting."""

TRIES = 4
"""Of what float64 suggests, each multiplied out."""


@dataclass(frozen=True)
class HeadCount:
    """How many heads a convolution needs; each head applies any matrix (D_h >= min(D_in, D_out)).

    Only `lower` and `upper` are of narrow heads, where a head dimension was given: the least number
    lies between, and which it is, is not said. Theorem: `heads_count_the_rank_of_the_kernel`, and
    `head_dimension_is_block_term_rank` for these two. The lower bounds hold where some query sees
    all taps on pixels that can take any value, and for `finite` another one.

    Args:
        rank: r, of the taps written as rows.
        case: "a", "b" or "c": 0 is outside of the taps' convex hull, on its relative boundary, or
            in its relative interior.
        masked: the least number of heads that see the window alone: r or r + 1.
        masked_limit: the least number of such heads that come arbitrarily close: r + 1 in case (c),
            else r; in case (b) their matrices grow without bound.
        finite: the least number of heads of finite logits, where another key is seen: r + 1; none
            for the kernel 0.
        certificate: a proof of the case, in rationals.
        lower: no fewer heads of the head dimension make the kernel, masked or not, whatever they
            mix; `masked` where it is no narrower than the channels, or was not given.
        upper: so many do, masked or with all logits finite, on padded keys or a circle; `finite`
            likewise.
    """

    rank: int
    case: str
    masked: int
    masked_limit: int
    finite: int
    certificate: RationalCertificate
    lower: int
    upper: int

    @property
    def signed(self) -> int:
        """The least number of signed heads, differences of two softmaxes: r, with finite logits."""
        return self.rank


def count(conv: AnyConvolution, head_dim: int | None = None) -> HeadCount:
    """How many heads a convolution needs; nothing is built.

    With a head dimension below the channels' the least number of heads that mix taps is not known:
    the count has a `lower` and an `upper` for it, and all else is that of wide heads.

    The rank is exact for numbers that are multiples, up to 2^10, of one power of two, and wherever
    exact arithmetic finds the numerical rank. For others singular values of at most N u times the
    largest count as 0, N the number of taps and u the unit roundoff of the convolution's dtype, and
    the certificate's `residual` says what they leave.

    Args:
        conv: any `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d`; without groups, for a head_dim.
        head_dim: D_h, of `lower` and `upper`; None for heads that apply any matrix.

    Raises:
        TypeError: conv is no convolution of torch's own, or head_dim no integer.
        ValueError: an unsupported dtype, weights that are infinite, NaN or on the meta device, a
            head_dim that is not positive, or groups and a head_dim.
    """
    if head_dim is not None:
        check_head_dim(head_dim)
    stencil = stencil_of(conv)
    found = counted(stencil)
    if head_dim is None:
        return found
    if head_dim >= min(stencil.matrices.shape[2:]) and stencil.groups == 1:
        return found
    # A narrow head is a head: the counts of wide ones bound theirs from below. What may be noise of
    # the stored numbers, a half format's above all, is no reason for heads in the lower bound, and
    # is taken for what it is in the upper.
    dtype = stencil.matrices.dtype
    lower = bounds(stencil, head_dim, unit_roundoff(dtype)).lower
    upper = bounds(stencil, head_dim, roundoff_of(dtype)).upper
    return replace(found, lower=max(found.masked, lower), upper=max(found.finite, upper))


def counted(stencil: Stencil) -> HeadCount:
    """The count of a stencil of taps; errors are those of `count`."""
    rows, roundoff = taps_of(stencil), unit_roundoff(stencil.matrices.dtype)
    certificate = certified(rows, kept_taps(rows, roundoff), roundoff)
    case, rank = certificate.case, len(certificate.columns)
    masked, finite = rank + (case != "a"), rank + 1 if rank else 0
    return HeadCount(
        rank=rank,
        case=case,
        masked=masked,
        masked_limit=rank + (case == "c"),
        finite=finite,
        certificate=certificate,
        lower=masked,
        upper=finite,
    )


def taps_of(stencil: Stencil) -> Tensor:
    """M, those that are 0 included: (taps, D) in float64 on the CPU.

    Raises:
        TypeError: the stencil is that of a pooling.
        ValueError: weights are infinite, NaN or on the meta device.
    """
    if isinstance(stencil.geometry, WindowGeometry):
        raise TypeError(
            "conv is an average pooling; accepted: a convolution; a pooling is one head"
        )
    if stencil.matrices.is_meta:
        raise ValueError("conv is on the meta device; accepted: a convolution that has numbers")
    rows = stencil.matrices.flatten(1).to("cpu", torch.float64)
    if not bool(rows.isfinite().all()):
        raise ValueError("conv.weight has infinite or NaN entries; accepted: finite ones")
    return rows


def kept_taps(rows: Tensor, roundoff: float) -> Tensor:
    """Which taps (N, D) are not 0, or not next to 0 among floats whose last bits are noise: (N,).

    Args:
        rows: in float64.
        roundoff: u of the format that they were stored in.
    """
    kept = rows.any(dim=1)
    if not bool(kept.any()) or _is_exact(rows):
        return kept
    scaled, _ = normalised(rows)
    counts: Tensor = scaled.norm(dim=1) > _noise(scaled[kept], roundoff)
    return counts


def certified(rows: Tensor, kept: Tensor, roundoff: float) -> RationalCertificate:
    """The rank and the case of taps (N, D), with the certificate.

    Args:
        rows: in float64.
        kept: the taps that count, (N,).
        roundoff: u of the format that they were stored in.
    """
    if not bool(kept.any()):
        return RationalCertificate((), (), (), ())
    whole, size = normalised(rows)
    left_out = whole[~kept].norm()
    rows, scaled = rows[kept], whole[kept]
    values = _singular_values(scaled)
    rank = max(1, int((values > _noise(scaled, roundoff)).sum()))
    small = _is_exact(rows)
    columns = independent_columns(scaled, rank)
    # Integers over one power of two.
    numbers, exponent = _integers(rows[:, columns])
    if rank == len(rows) and (primal := _all_positive(scaled[:, columns], numbers)) is not None:
        taps = tuple(tuple(Fraction(n) * Fraction(2) ** exponent for n in row) for row in numbers)
        residual = math.ldexp(float(left_out), size)
        return RationalCertificate(taps, tuple(columns), primal, (Fraction(0),) * rank, residual)
    dictionary: Dictionary | None = None
    while dictionary is None:
        try:
            dictionary = Dictionary(numbers)
        except ZeroDivisionError:  # singular values that rounding alone made: the last column's
            columns = columns[:-1]
            numbers, exponent = _integers(rows[:, columns])
    missed = _missed_column(rows, dictionary)
    while missed is not None and small:
        columns = [*columns, missed]
        numbers, exponent = _integers(rows[:, columns])
        dictionary = Dictionary(numbers)
        missed = _missed_column(rows, dictionary)
    primal, dual = _at_once(scaled[:, columns], dictionary, numbers) or alternative(
        dictionary, numbers
    )
    unit = Fraction(2) ** exponent
    missing = [] if missed is None else values[len(columns) :].tolist()
    return RationalCertificate(
        taps=tuple(tuple(n * unit for n in row) for row in numbers),
        columns=tuple(columns),
        primal=primal,
        dual=dual,
        residual=math.ldexp(math.hypot(float(left_out), *missing), size),
    )


def normalised(rows: Tensor) -> tuple[Tensor, int]:
    """Numbers below 1, of which float64 can form squares, and the power of two taken out."""
    size = math.frexp(float(rows.abs().max()))[1]
    half = -size // 2
    return rows * 2.0**half * 2.0 ** (-size - half), size


def _singular_values(rows: Tensor) -> Tensor:
    """In falling order; of a wide matrix those of its triangular factor."""
    small = torch.linalg.qr(rows.T, mode="r")[1] if rows.shape[1] > rows.shape[0] else rows
    values: Tensor = torch.linalg.svdvals(small)
    return values


def independent_columns(rows: Tensor, rank: int) -> list[int]:
    """So many columns, each the one that is farthest from the span of those before."""
    left, found = rows.clone(), []
    for _ in range(rank):
        column = int(left.square().sum(dim=0).argmax())
        found.append(column)
        direction = left[:, column] / left[:, column].norm()
        left -= torch.outer(direction, direction @ left)
        left[:, found] = 0.0
    return found


def _noise(scaled: Tensor, roundoff: float) -> float:
    """N u σ_1: storing moves singular values by at most u times the norm of M, at most u √N σ_1."""
    return len(scaled) * roundoff * float(_singular_values(scaled)[0])


def _is_exact(rows: Tensor) -> bool:
    """Whether all numbers are multiples, up to 2^10, of one power of two."""
    scaled = normalised(rows)[0] * EXACT
    return bool((scaled == scaled.round()).all() and ((scaled == 0) == (rows == 0)).all())


def _integers(rows: Tensor) -> tuple[list[list[int]], int]:
    """Integers, and the exponent of the power of two that makes the numbers of them."""
    ratios = [[value.as_integer_ratio() for value in row] for row in rows.tolist()]
    bits = max((d.bit_length() - 1 for row in ratios for _, d in row), default=0)
    numbers = [[n << (bits - d.bit_length() + 1) for n, d in row] for row in ratios]
    common = math.gcd(*(n for row in numbers for n in row))
    shift = (common & -common).bit_length() - 1 if common else 0
    return [[n >> shift for n in row] for row in numbers], shift - bits


def _all_positive(square: Tensor, numbers: list[list[int]]) -> tuple[Fraction, ...] | None:
    """A c with Bc > 0 of as many columns as taps, which are independent; None if not found at once.

    Solved in float64, and multiplied out in integers.
    """
    if not is_regular(numbers):
        return None
    solved = torch.linalg.solve_ex(square, torch.ones(len(square), dtype=square.dtype))[0]
    if not bool(solved.isfinite().all()):
        return None
    found = [n for (n,) in _integers(solved.unsqueeze(1))[0]]
    if min(sum(a * b for a, b in zip(row, found, strict=True)) for row in numbers) <= 0:
        return None
    return tuple(map(Fraction, found))


def _at_once(
    columns: Tensor, dictionary: Dictionary, numbers: list[list[int]]
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]] | None:
    """A certificate of case (a) or (c) that float64 suggests, made exact and multiplied out.

    Vectors of the column space that are positive, and weights that leave nothing and are positive,
    are looked for by projecting on a space and on the vectors of at least 1 in turn. None if
    neither is found, as close to the border: then it is looked for by pivoting.
    """
    taps, rank = columns.shape
    lengths = columns.norm(dim=1, keepdim=True)
    if float(lengths.min()) == 0:
        return None
    unit = columns / lengths
    space, values, across = torch.linalg.svd(unit, full_matrices=False)
    slack, weights = torch.ones(taps, dtype=torch.float64), torch.ones(taps, dtype=torch.float64)
    tries = 0
    for _ in range(TURNS):
        if tries > TRIES:
            break
        inside = space.T @ slack
        slack, weights = space @ inside, weights - space @ (space.T @ weights)
        tries += float(slack.min()) > 0 or float(weights.min()) > 0
        if float(slack.min()) > 0:
            nearest = (across.T @ (inside / values)).unsqueeze(1)
            primal = [n for (n,) in _integers(nearest)[0]]
            if all(sum(a * b for a, b in zip(row, primal, strict=True)) > 0 for row in numbers):
                return tuple(map(Fraction, primal)), (Fraction(0),) * taps
        if float(weights.min()) > 0:
            balance = (weights / lengths.squeeze(1)).unsqueeze(1)
            dual = dictionary.balanced([n for (n,) in _integers(balance)[0]])
            if min(dual) > 0:
                return (Fraction(0),) * rank, dual
        slack, weights = slack.clamp_min(1.0), weights.clamp_min(1.0)
    return None


def _missed_column(rows: Tensor, dictionary: Dictionary) -> int | None:
    """The first column that is outside of the dictionary's column space, exactly; None if none is.

    As many columns as taps span everything.
    """
    if dictionary.width == len(rows):
        return None
    seen: set[tuple[float, ...]] = set()
    for number, column in enumerate(rows.T):
        entries = tuple(column.tolist())
        if entries in seen:
            continue
        seen.add(entries)
        if dictionary.misses([n for (n,) in _integers(column.unsqueeze(1))[0]]):
            return number
    return None


# A whole network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadCounts(Mapping[str, HeadCount]):
    """The counts of a network's convolutions, by path; its text is a table.

    Args:
        counts: by path.
        taps: of each, K²: the heads of the paper's construction.
        left: path to the reason, for convolutions that were not counted.
    """

    counts: Mapping[str, HeadCount]
    taps: Mapping[str, int]
    left: Mapping[str, str]

    def __getitem__(self, path: str) -> HeadCount:
        return self.counts[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __str__(self) -> str:
        """A line for each convolution, and the sums."""
        head = ("", "taps", "rank", "case", "masked", "finite", "signed")
        lines: list[Sequence[object]] = [
            (path, self.taps[path], c.rank, c.case, c.masked, c.finite, c.signed)
            for path, c in self.counts.items()
        ]
        sums = [sum(int(str(line[i])) for line in lines) for i in (1, 2, 4, 5, 6)]
        table = [head, *lines, ("all", sums[0], sums[1], "", *sums[2:])]
        wide = [max(len(str(line[i])) for line in table) for i in range(len(head))]
        text = [
            "  ".join(
                f"{cell!s:<{w}}" if i in (0, 3) else f"{cell!s:>{w}}"
                for i, (cell, w) in enumerate(zip(line, wide, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join([*text, *(f"{path}: {reason}" for path, reason in self.left.items())])


def count_heads(model: nn.Module) -> HeadCounts:
    """How many heads each convolution of a network needs; nothing is built.

    A convolution that computes something of its own, such as a weight-normed one, is left, with the
    reason; one that stands in two places is counted once.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")
    counts: dict[str, HeadCount] = {}
    taps: dict[str, int] = {}
    left: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, CONVOLUTIONS):
            continue
        try:
            counts[path] = count(module)
            taps[path] = math.prod(module.kernel_size)
        except (TypeError, ValueError) as refusal:
            left[path] = str(refusal)
    return HeadCounts(counts, taps, left)
