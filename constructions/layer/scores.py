"""Scores: what features and queries say of every query and key, term by term.

    A^h_{q,k} =   X_q W_qry W_key^T X_k^T  +  X_q W_qry Ŵ_key^T r_δ
                + u^T W_key^T X_k^T        +  v^T Ŵ_key^T r_δ          δ = k - q

(arXiv 1911.03584, eq. 8.) A choice of queries, by their numbers, costs what it asks for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.encodings import Encoding
from constructions.formats import accumulator, position_format
from constructions.geometry.lattice import Lattice, displacements, spread
from constructions.geometry.padding_modes import Zeros, padded
from constructions.geometry.view import View
from constructions.heads import Heads
from constructions.tracing import has_values


@dataclass(frozen=True)
class Choice:
    """Some queries and some heads, by their numbers; None for all.

    Args:
        queries: (Q',) int64, row-major numbers.
        heads: (H',) int64.
    """

    queries: Tensor | None = None
    heads: Tensor | None = None

    def of_heads(self, by_head: Tensor) -> Tensor:
        """What belongs to the chosen heads, of (H, ...)."""
        return by_head if self.heads is None else by_head[self.heads]

    def of_queries(self, by_query: Tensor) -> Tensor:
        """What belongs to the chosen queries, of (..., Q, C)."""
        return by_query if self.queries is None else by_query.index_select(-2, self.queries)

    def rows(self, all_queries: int, all_heads: int) -> int:
        """How many rows of attention are chosen, of so many queries and heads."""
        queries = all_queries if self.queries is None else len(self.queries)
        return queries * (all_heads if self.heads is None else len(self.heads))


ALL = Choice()


def position_scores(
    heads: Heads,
    view: View,
    *,
    gap: Tensor | float,
    scale: Tensor | float,
    sink_height: float | None,
    shift_invariant: bool,
    choice: Choice = ALL,
) -> Tensor:
    """v^T Ŵ_key^T r_δ, centred: a head's score at its own shift is 0.

    Positions are formed in float64, and multiplied by the scale last.

    Args:
        heads: of the layer.
        view: of the input.
        gap: of the encoding on these keys, in units of its scores.
        scale: what multiplies the scores of the encoding.
        sink_height: how far the sink, one more key, stands below a target, in gaps; None for none.
        shift_invariant: whether the normaliser is: then each row's highest score is made 0.
        choice: of queries and heads.

    Returns:
        (H, queries, keys and the sink), in the accumulator format of the image; -inf, whose weight
        is 0, where a score is below all of its numbers.

    Raises:
        ValueError: the sharpness overflows.
    """
    check_scale(scale, gap, view.image.dtype)
    position = position_format(heads.device)
    by_head = rows_below_targets(
        heads.encoding,
        view.keys,
        view.queries,
        heads.shifts.to(position),
        heads.positional_key.to(position),
        choice,
    )
    scores = []
    for rows in by_head:
        if sink_height is not None:
            assert not isinstance(gap, Tensor)  # that of a circle, which has no sink
            rows = F.pad(rows, (0, 1), value=-sink_height * gap)
        if shift_invariant:
            # Far from the image all scores of a row are large: what is left is rounded less.
            rows = rows - rows.detach().amax(dim=-1, keepdim=True)
        # The scale comes last: what it multiplies is an exact integer (quadratic encoding).
        rows = rows * scale
        scores.append(rows.to(accumulator(view.image.dtype)))
    return torch.stack(scores)


def check_scale(scale: Tensor | float, gap: Tensor | float, dtype: torch.dtype) -> None:
    """Raise a ValueError where a sharpness overflows, or the scale that it makes.

    The sharpness is a score, that of the runner-up below a target, and has to be a number of the
    format of the scores: kernels of others, and thresholds of normalisers, take it as one. Where
    the gap is below 1 the scale may overflow though it is, and make NaN of the score 0. Of other
    scores none does harm: one below all numbers is -inf, whose weight is 0.

    Args:
        scale: sharpness / gap.
        gap: of the encoding on the keys at hand.
        dtype: of the layer.
    """
    tensors = [number for number in (scale, gap) if isinstance(number, Tensor)]
    if tensors and not has_values(*tensors):
        return
    scale, gap = (float(n.detach()) if isinstance(n, Tensor) else n for n in (scale, gap))
    exact = accumulator(dtype)
    largest = torch.finfo(exact).max
    # Dividing by the gap may have rounded up.
    if math.isinf(scale) or scale > largest / gap * (1 + 2**-50):
        raise ValueError(
            f"sharpness / gap is {scale:.6g}, of a gap of {gap:.6g} on these keys; accepted: a "
            f"sharpness of at most {min(largest, gap * sys.float_info.max):.6g}, beyond which "
            f"scores overflow {str(exact).removeprefix('torch.')}"
        )


@dataclass(frozen=True)
class ContentTerms:
    """The parameters of the three terms that depend on the input.

    Args:
        query: W_qry, (H, D_in, D_k).
        key: W_key, (H, D_in, D_k).
        bias: u, (H, D_k).
    """

    query: Tensor
    key: Tensor
    bias: Tensor

    def scores(self, heads: Heads, view: View, dtype: torch.dtype, choice: Choice = ALL) -> Tensor:
        """The three terms, added: (N, H, queries, keys), in the given format."""
        keys, chosen = view.keys, choice.of_heads
        # A query beyond the image has no content.
        at_queries = _tokens(padded(view.image, view.pixels, view.queries, Zeros()).to(dtype))
        at_keys = _tokens(view.values.to(dtype))
        query = choice.of_queries(at_queries) @ chosen(self.query).to(dtype)  # (N, H, Q, D_k)
        key = at_keys @ chosen(self.key).to(dtype)  # (N, H, K, D_k)
        content_content = query @ key.transpose(-1, -2)
        content_bias = key @ chosen(self.bias).to(dtype).unsqueeze(-1)  # (N, H, K, 1)
        absolute = heads.encoding.absolute
        places = keys if absolute else displacements(keys, view.queries)
        shifts = heads.shifts.detach().to(position_format(heads.device))
        points = places.positions(heads.device).to(shifts.dtype)
        features, _ = heads.encoding.encode(points, shifts, keys)
        of_positions = chosen(heads.positional_key).to(dtype)
        position_keys = features.to(dtype) @ of_positions  # (H, K or M, D_k)
        content_position = query @ position_keys.transpose(-1, -2)  # (N, H, Q, K or M)
        if not absolute:
            content_position = own_row(content_position, keys, view.queries, choice.queries)
        return content_content + content_position + content_bias.transpose(-1, -2)


def rows_below_targets(
    encoding: Encoding,
    keys: Lattice,
    queries: Lattice,
    shifts: Tensor,
    positional_key: Tensor,
    choice: Choice = ALL,
) -> Iterator[Tensor]:
    """For each head v^T Ŵ_key^T r less that at its shift, in units of the gap.

    Args:
        encoding: features and names, relative or absolute.
        keys: where the keys stand.
        queries: where the queries stand.
        shifts: Δ, (H, d), in the format that positions are computed in.
        positional_key: Ŵ_key, (H, D_p, D_p), in the same.
        choice: of queries and heads.

    Yields:
        (queries, keys), row-major.
    """
    if encoding.absolute:
        at_keys = keys.positions(shifts.device).to(shifts.dtype)
        at_queries = choice.of_queries(queries.positions(shifts.device).to(shifts.dtype))
        pairs = zip(choice.of_heads(shifts), choice.of_heads(positional_key), strict=True)
        for shift, key in pairs:
            yield below_peaks(encoding, at_keys, at_queries + shift, keys, key)
        return
    box = displacements(keys, queries).positions(shifts.device).to(shifts.dtype)
    for table in choice.of_heads(below_peaks(encoding, box, shifts, keys, positional_key)):
        yield spread(table, keys, queries, choice.queries)


def below_peaks(
    encoding: Encoding,
    places: Tensor,
    peaks: Tensor,
    grid: Lattice,
    positional_key: Tensor | None = None,
) -> Tensor:
    """Scores at places, less those at the peaks that name them.

    Args:
        encoding: features and names.
        places: (M, d), displacements or, for an absolute encoding, positions.
        peaks: (R, d), shifts or targets.
        grid: where the keys stand.
        positional_key: Ŵ_key, (D_p, D_p) or one for each peak; None for the identity.

    Returns:
        (R, M).
    """
    features, named = encoding.encode(torch.cat([places, peaks]), peaks, grid)
    count = places.shape[0]  # len() would make a number of a symbol
    features, at_peaks = features[:count], features[count:]
    if positional_key is not None:
        named = (positional_key @ named.unsqueeze(-1)).squeeze(-1)
    below = named @ features.T - (named * at_peaks).sum(dim=-1, keepdim=True)
    # A peak is exactly 0 below itself, whatever two ways of adding up make of it; its gradient
    # need not be.
    at_peak = _meet(places, peaks) | _meet(features, at_peaks)
    return torch.where(at_peak, below - below.detach(), below)


def own_row(
    by_displacement: Tensor, keys: Lattice, queries: Lattice, chosen: Tensor | None = None
) -> Tensor:
    """From (..., Q, M) to (..., Q, K): for each query, the entries at its own displacements."""
    index = torch.arange(by_displacement.shape[-1], device=by_displacement.device)
    pairs = spread(index, keys, queries, chosen)  # (Q, K)
    return by_displacement.gather(-1, pairs.expand(*by_displacement.shape[:-1], -1))


def _meet(points: Tensor, others: Tensor) -> Tensor:
    """Which points (M, d) are which others (R, d): (R, M)."""
    same = points[:, 0] == others[:, :1]
    for coordinates, other in zip(points.T[1:], others.T[1:], strict=True):
        same = same & (coordinates == other.unsqueeze(-1))
    return same


def _tokens(image: Tensor) -> Tensor:
    """(N, C, *spatial) as (N, 1, tokens, C), the same for every head."""
    return image.flatten(2).transpose(1, 2).unsqueeze(1)
