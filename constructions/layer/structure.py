"""What the heads of a layer share: one kernel, which a convolution can take as it is stored.

Factors that a layer stores, W_val and W_out, stand as a convolution stores its kernel, (G, D_out /
G, D_in / G, heads): transposed, and with the heads, its taps, last. Here they are read by head.
Theorem: `attention_is_soft_padding_then_convolution`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from constructions.formats import position_format
from constructions.geometry.geometry import Geometry, offsets_in_order
from constructions.geometry.lattice import Lattice
from constructions.heads import Heads
from constructions.tracing import has_values, members

Version = list[tuple[ReferenceType[Tensor], int, bool]]
"""Tensors, how often each was edited, and whether it is trained."""


def by_head(stored: Tensor) -> Tensor:
    """The matrices (H, G, n, m) of a factor (G, m, n, H): a view."""
    return stored.permute(3, 0, 2, 1)


def as_stored(matrices: Tensor) -> Tensor:
    """The factor (G, m, n, H) of matrices (H, G, n, m): a view."""
    return matrices.permute(1, 3, 2, 0)


def products(heads: Heads, dtype: torch.dtype) -> Tensor:
    """W_val^h W_out^h in the given dtype: (H, G, D_in / G, D_out / G).

    Where either factor is the identity, as the construction has it, no product is formed: it is a
    view of the other factor.
    """
    value, output = heads.value, heads.output
    if value is None:
        assert output is not None
        return output.to(dtype)
    return value.to(dtype) if output is None else value.to(dtype) @ output.to(dtype)


def applied(heads: Heads, keys: Lattice, dtype: torch.dtype) -> Tensor:
    """What each head does with what it sees on given keys: `products`, times its gain."""
    matrices = products(heads, dtype)
    gains = heads.gains(keys)
    if gains is None:
        return matrices
    exact = position_format(heads.device)
    gains = gains.to(matrices.device, exact).reshape(-1, 1, 1, 1)
    return (matrices.to(exact) * gains).to(dtype)


def version_of(tensors: Iterable[Tensor]) -> Version | None:
    """What changes whenever a tensor is exchanged, edited or trained; None where nothing tells.

    References are equal if they are to one tensor that still lives: a number of it, `id`, would be
    that of another one later.
    """
    version = []
    for tensor in tensors:
        if tensor.is_inference():
            return None
        version.append((ref(tensor), tensor._version, tensor.requires_grad))
    return version


def is_same_version(one: Version | None, other: Version | None) -> bool:
    """Whether two versions are of the same tensors, all still there."""
    if one is None or other is None or len(one) != len(other):
        return False
    return all(
        a[0]() is not None and a[0]() is b[0]() and a[1:] == b[1:]
        for a, b in zip(one, other, strict=True)
    )


def are_shared(heads: Heads, geometry: Geometry) -> bool:
    """Whether heads differ in shift and matrices alone, their shifts on the kernel's grid."""
    key, shift = heads.positional_key, heads.shifts
    trained = key.requires_grad or shift.requires_grad
    return (
        not trained
        and all(_are_identities(one) for one in members(key))
        and (
            are_in_order(shift, geometry)
            or all(_are_on_grid(one, geometry) for one in members(shift))
        )
    )


def kernel(heads: Heads, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """The kernel that heads of a shared structure make, as torch's convolution takes it.

    (D_out, D_in / G, *kernel size). Heads of one shift add up, and a tap that no head attends to
    has none. Where one factor is the identity and the heads are in the order of the taps, as the
    construction has it, this is a view of the other factor.
    """
    matrices = as_stored(products(heads, dtype))
    if not has_values(heads.shifts) or not are_in_order(heads.shifts, geometry):
        matrices = on_taps(heads.shifts, geometry, matrices)
    groups, outputs, inputs, _ = matrices.shape
    return matrices.reshape(groups * outputs, inputs, *geometry.kernel_size)


def on_taps(shifts: Tensor, geometry: Geometry, matrices: Tensor) -> Tensor:
    """What heads on the kernel's grid apply at each tap, (..., taps): heads of one shift add up.

    Args:
        shifts: of the heads, (H, d).
        geometry: of the kernel.
        matrices: (..., H).
    """
    size = geometry.kernel_size
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    tap = (_taps(shifts, geometry) * shifts.new_tensor(strides)).sum(dim=-1).long()
    none = matrices.new_zeros(*matrices.shape[:-1], geometry.taps)
    return none.index_add(-1, tap, matrices)


def by_tap(heads: Heads, geometry: Geometry) -> Tensor:
    """What heads on the kernel's grid apply at each tap, (taps, G, D_in / G, D_out / G)."""
    matrices = products(heads, heads.dtype)
    if not has_values(heads.shifts) or are_in_order(heads.shifts, geometry):
        return matrices
    return by_head(on_taps(heads.shifts.detach(), geometry, as_stored(matrices)))


def are_in_order(shifts: Tensor, geometry: Geometry) -> bool:
    """Whether head h attends to tap h, as the construction has it."""
    offsets = offsets_in_order(geometry)
    return all(one.tolist() == offsets for one in members(shifts))


def _are_on_grid(shifts: Tensor, geometry: Geometry) -> bool:
    """Whether every head attends to one of the taps."""
    taps, size = _taps(shifts, geometry), shifts.new_tensor(geometry.kernel_size)
    return bool(((taps == taps.round()) & (taps >= 0) & (taps < size)).all())


def _taps(shifts: Tensor, geometry: Geometry) -> Tensor:
    """Each head's shift as a multi-index of the kernel, (H, d)."""
    before, dilation = (shifts.new_tensor(n) for n in (geometry.before, geometry.dilation))
    return (shifts + before) / dilation


def _are_identities(matrices: Tensor) -> bool:
    """Whether all of (H, n, n) are the identity; small ones are compared as plain numbers."""
    n = matrices.shape[-1]
    if matrices.numel() > 4096:
        return torch.equal(matrices, torch.eye(n).to(matrices).expand_as(matrices))
    return bool(matrices.tolist() == _identities(n, len(matrices)))


@lru_cache(maxsize=64)
def _identities(n: int, count: int) -> list[list[list[float]]]:
    """Identities as plain numbers, not to be changed."""
    return [[[float(i == j) for j in range(n)] for i in range(n)]] * count
