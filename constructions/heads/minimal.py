"""Minimal heads: as few as the rank of the kernel, or one more.

Theorem: `heads_count_the_rank_of_the_kernel`. What is made here is the weights of the heads, a
`Mixtures`; their matrices are then found from the kernel as for all heads that mix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.encodings.mixtures import MASKED, Mixtures
from constructions.formats import unit_roundoff
from constructions.heads.counting import HeadCount, counted, kept_taps, normalised, taps_of
from constructions.heads.polytope import simplex
from constructions.heads.semi import best_parts
from constructions.sources import Stencil

AMPLIFIED = 64.0
"""Coefficients may be so much larger than the taps, on average, before one more head is taken:
close to the border case r heads would cancel each other."""

SEEN = 2.0**-10
"""How much of a mean over the window is added to a head of finite logits, where it sees least."""

ELSEWHERE = 2.0**-24
"""What a head of finite logits, or a softmax of a signed one, gives a key outside of its window, as
a part of what it gives the window."""


def mixtures(stencil: Stencil, heads: str | int, *, finite: bool = False) -> Mixtures:
    """The weights of as few heads as express a stencil, or of the best that so many can do.

    Args:
        stencil: of taps.
        heads: "minimal", "signed" or a number.
        finite: whether all logits are to be finite.

    Raises:
        TypeError: the stencil is that of a pooling.
        ValueError: its weights are not finite, or have no values.
    """
    rows, count = taps_of(stencil), counted(stencil)
    offsets = stencil.geometry.offsets("cpu")
    told = f"rank {count.rank}, case {count.case}"
    if not count.rank:
        return _made(offsets, [], torch.ones(1, 1, dtype=torch.float64), "the kernel 0")
    kept = kept_taps(rows, unit_roundoff(stencil.matrices.dtype))
    places, kernel = kept.nonzero().flatten().tolist(), normalised(rows[kept])[0]
    if heads == "signed":
        return _signed(offsets, places, kernel, count, told)
    if isinstance(heads, int) and heads < count.masked:
        parts = best_parts(kernel, heads, _of_rank(kernel, heads))
        told = f"{told}: {len(parts)} heads, of which {count.masked} are exact"
        return _made(offsets, places, _masked(parts), told)
    if finite:
        weights = _finite(kernel, count)
        return _made(offsets, places, weights, f"{told}: {len(weights)} heads of finite logits")
    weights, more = _exact(kernel, count)
    return _made(offsets, places, _masked(weights), f"{told}: {len(weights)} heads{more}")


def column_space(kernel: Tensor, rank: int, *more: Tensor) -> Tensor:
    """Orthonormal columns that span those of the kernel, up to its rank, and further vectors."""
    wide = kernel.shape[1] > len(kernel)
    columns = torch.linalg.qr(kernel.T, mode="r")[1].T if wide else kernel
    basis: Tensor = torch.linalg.svd(columns, full_matrices=False)[0][:, :rank]
    for vector in more:
        left = vector / vector.norm()
        for _ in range(2):
            left = left - basis @ (basis.T @ left)
        basis = torch.cat([basis, (left / left.norm()).unsqueeze(1)], dim=1)
    return basis


def _exact(kernel: Tensor, count: HeadCount) -> tuple[Tensor, str]:
    """Weights at the taps, (H, N), rows of sum 1, that span the kernel's columns; and a word why.

    One head more than the rank in case (b) and (c), and where r of them would cancel.
    """
    taps, rank = len(kernel), count.rank
    if rank >= taps:
        return torch.eye(taps, dtype=torch.float64), ""
    norms = kernel.abs().sum(dim=1)
    if count.case == "a":
        basis = column_space(kernel, rank)
        slack = count.certificate.slack()
        primal = torch.tensor([float(s / max(slack)) for s in slack], dtype=torch.float64)
        inside = basis @ (basis.T @ primal)
        if bool((inside > 0).all()):
            found = simplex(basis, inside)
            if _amplification(found, kernel) <= AMPLIFIED:
                return found, ""
        found = simplex(column_space(kernel, rank, norms), norms)
        return found, ", one more than needed: fewer would cancel, as near the border of case b"
    return simplex(column_space(kernel, rank, norms), norms), ""


def _of_rank(kernel: Tensor, heads: int) -> Tensor:
    """Heads that have the best approximation of one rank less: the upper bound of equation (20)."""
    norms = kernel.abs().sum(dim=1)
    return simplex(column_space(kernel, heads - 1, norms), norms)


def _amplification(weights: Tensor, kernel: Tensor) -> float:
    """Σ|V| over Σ|W|: what errors of the heads are multiplied by, 1 at the least."""
    matrices = torch.linalg.lstsq(weights.T, kernel).solution
    return float(matrices.abs().sum() / kernel.abs().sum())


def _masked(weights: Tensor) -> Tensor:
    """With a last entry of 0, for the keys outside."""
    return torch.nn.functional.pad(weights, (0, 1))


def _finite(kernel: Tensor, count: HeadCount) -> Tensor:
    """r + 1 heads that are positive at every tap and elsewhere: equation (12).

    Vertices of the span of the columns, 0 elsewhere, and of the taps' 1-norms, which go on
    elsewhere; to each some of the latter is added.
    """
    norms = kernel.abs().sum(dim=1)
    mean = torch.cat([norms / norms.sum(), torch.full((1,), 1 / len(norms), dtype=torch.float64)])
    extended = torch.nn.functional.pad(kernel, (0, 0, 0, 1))
    points = simplex(column_space(extended, count.rank, mean), mean)
    raised = (1 - SEEN) * points + SEEN * mean
    raised[:, -1] *= ELSEWHERE
    return raised


def _signed(
    offsets: Tensor, places: list[int], kernel: Tensor, count: HeadCount, told: str
) -> Mixtures:
    """r differences of two softmaxes: equation (19), for an orthonormal basis."""
    vectors = column_space(kernel, count.rank).T
    names = _names(offsets[places], vectors.abs())
    # What names a head is seen by the first of its two softmaxes.
    vectors = vectors * _at_names(vectors, offsets[places], names).sign().unsqueeze(1)
    floor = ELSEWHERE * vectors.abs().amax(dim=1, keepdim=True)
    parts = [_masked(part.clamp_min(0.0)) + floor for part in (vectors, -vectors)]
    plus, minus = (
        _made(offsets, places, part, f"{told}: {len(vectors)} signed heads", names)
        for part in parts
    )
    ratios = [_at_names(part, offsets[places], names) for part in parts]
    order = _order(names)
    ratio = (ratios[1] / ratios[0])[order]
    return Mixtures(
        offsets=plus.offsets,
        places=plus.places,
        names=plus.names,
        logits=plus.logits,
        minus=minus,
        ratios=tuple(ratio.tolist()),
        told=plus.told,
    )


def _made(
    offsets: Tensor,
    places: list[int],
    weights: Tensor,
    told: str,
    names: Tensor | None = None,
) -> Mixtures:
    """The encoding of given weights (H, N + 1), heads in the order of their names.

    Args:
        offsets: of all taps.
        places: the numbers of those that are not 0.
        weights: at these and elsewhere.
        told: in words.
        names: of the heads; None for the taps, or places between them, that they see most of.
    """
    taps = offsets[places]
    if names is None:
        names = _names(taps, weights, beyond=offsets.amax(dim=0))
    order = _order(names)
    own = _at_names(weights, taps, names)
    logits = torch.where(weights > 0, (weights / own.unsqueeze(1)).log(), MASKED)[order]
    return Mixtures(
        offsets=tuple(tuple(map(int, point)) for point in taps.tolist()),
        places=tuple(places),
        names=tuple(map(tuple, names[order].tolist())),
        logits=tuple(map(tuple, logits.tolist())),
        told=told,
    )


def _order(names: Tensor) -> Tensor:
    """Heads in the lexicographic order of their names, which are distinct."""
    points = names.tolist()
    return torch.tensor(sorted(range(len(points)), key=points.__getitem__), dtype=torch.int64)


def _names(taps: Tensor, weights: Tensor, beyond: Tensor | None = None) -> Tensor:
    """A tap of its own for each head, one that it sees, (H, d); or a place half a pixel beyond.

    Independent nonnegative rows have such a choice: one of their minors is not 0. The least weight
    that is chosen is as large as can be, relative to its head's largest.
    """
    part = weights / weights.amax(dim=1, keepdim=True)
    columns = part.shape[1]
    limits = sorted({float(v) for v in part.flatten() if v > 0}, reverse=True)
    low, high = 0, len(limits) - 1
    while low < high:  # the first limit that leaves a choice
        middle = (low + high) // 2
        if _matched(part >= limits[middle]) is None:
            low = middle + 1
        else:
            high = middle
    chosen = _matched(part >= limits[low])
    assert chosen is not None
    places = taps.to(torch.float64)
    if columns > len(taps):
        between = (taps.amax(dim=0) if beyond is None else beyond).to(torch.float64)
        between[0] += 0.5
        places = torch.cat([places, between.unsqueeze(0)])
    return places[chosen]


def _matched(able: Tensor) -> list[int] | None:
    """A column of its own for each row, among those that it may take; None if there is none."""
    rows = [[j for j, ok in enumerate(row) if ok] for row in able.tolist()]
    taken: dict[int, int] = {}

    def placed(row: int, tried: set[int]) -> bool:
        for column in rows[row]:
            if column not in tried:
                tried.add(column)
                if column not in taken or placed(taken[column], tried):
                    taken[column] = row
                    return True
        return False

    if not all(placed(row, set()) for row in range(len(rows))):
        return None
    found = {row: column for column, row in taken.items()}
    return [found[row] for row in range(len(rows))]


def _at_names(weights: Tensor, taps: Tensor, names: Tensor) -> Tensor:
    """What each head gives the place that names it; that of the keys outside if it is no tap."""
    numbers = {tuple(point): n for n, point in enumerate(taps.to(torch.float64).tolist())}
    return torch.stack(
        [
            row[numbers.get(tuple(name), len(taps))]
            for row, name in zip(weights, names.tolist(), strict=True)
        ]
    )
