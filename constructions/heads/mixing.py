"""Heads that mix: each sees all taps, and together they tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.encodings import Mixing
from constructions.heads.heads import Heads, Kind
from constructions.heads.per_tap import factored, identities
from constructions.sources import Stencil


def mixing(stencil: Stencil, encoding: Mixing) -> Heads:
    """Heads that each see a mixture of all taps, and whose combinations are the taps.

    Head h applies Σ_δ coefficients[h, δ] W_δ, added up in float64 and stored in the stencil's
    dtype. Theorem: `one_dimension_expresses_every_convolution`.

    Raises:
        TypeError: the encoding returns something else than features and names.
        ValueError: the encoding has no heads for so many taps, or returns other shapes.
    """
    matrices, offsets = stencil.matrices, stencil.geometry.offsets("cpu").to(torch.float64)
    shifts = encoding.heads(offsets)
    key = identities(encoding, shifts, stencil)
    mixed = combined(matrices, offsets, encoding)
    return Heads(encoding, shifts, key, *factored(mixed), kind=Kind.MIXING)


def combined(matrices: Tensor, offsets: Tensor, encoding: Mixing) -> Tensor:
    """Σ_δ coefficients[h, δ] W_δ for each head h, (H, G, D_in / G, D_out / G)."""
    where = "meta" if matrices.is_meta else "cpu"
    coefficients = encoding.coefficients(offsets).to(where)
    wide = torch.einsum("ht,tgio->hgio", coefficients, matrices.to(where, torch.float64))
    return wide.to(matrices)
