"""One head for each tap: the paper's construction."""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.encodings import Encoding, check_encoding
from constructions.geometry.lattice import Lattice
from constructions.heads.heads import Heads
from constructions.sources import Stencil


def per_tap(stencil: Stencil, encoding: Encoding) -> Heads:
    """One head for each tap: it looks at the offset and applies the matrix of its tap.

    W_val^h W_out^h = W_h, one of the two factors the identity (arXiv 1911.03584, Theorem 1).
    Theorem: `attention_expresses_convolution`.

    Raises:
        TypeError: the encoding returns something else than features and names.
        ValueError: the encoding cannot select the offsets, on any grid, or returns other shapes.
    """
    shifts = stencil.geometry.offsets("cpu").to(torch.float64)
    key = identities(encoding, shifts, stencil)
    return Heads(encoding, shifts, key, *factored(stencil.matrices))


def identities(encoding: Encoding, shifts: Tensor, stencil: Stencil) -> Tensor:
    """Ŵ_key of every head, (H, D_p, D_p), for an encoding that is sound for these shifts.

    Any grid tells the dimension of an encoding, and most whether it can select the shifts.

    Raises:
        TypeError: the encoding returns something else than features and names.
        ValueError: it returns other shapes, or has no gap for these shifts.
    """
    dimension = check_encoding(encoding, shifts, Lattice.box(stencil.geometry.kernel_size))
    one = torch.eye(dimension, dtype=torch.float64, device=stencil.matrices.device)
    return one.expand(len(shifts), dimension, dimension)


def factored(matrices: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """W_val and W_out of the smallest head dimension, one of the two the identity: None.

    Args:
        matrices: the products, (H, G, D_in / G, D_out / G).
    """
    d_in, d_out = matrices.shape[2:]
    return (matrices, None) if d_out <= d_in else (None, matrices)
