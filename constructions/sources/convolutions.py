"""Convolutions: any convolution of torch, checked and read as a stencil."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from constructions.formats import check_format
from constructions.geometry.geometry import Geometry
from constructions.geometry.padding_modes import PADDING_MODES
from constructions.sources.native import NativeConvolution
from constructions.sources.stencil import Stencil

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
AnyConvolution = Convolution | TransposedConvolution

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
OVERRIDES = ("forward", "_conv_forward", "_output_padding", "__call__")
"""Methods that a class must not have of its own, to compute what nn.Conv does."""


def stencil_of_convolution(conv: AnyConvolution) -> Stencil:
    """Read any torch convolution; the tensors are detached and share no memory with it.

    Raises:
        TypeError: conv is not a convolution of torch's own, or computes anything else.
        ValueError: its dtype is none of the four formats.
    """
    check_convolution(conv)
    geometry, native = geometry_of(conv), native_of(conv)
    matrices = native.taps_of(conv.weight.detach(), conv.groups)
    return Stencil(
        geometry=geometry,
        border=PADDING_MODES[conv.padding_mode],
        matrices=matrices.clone(memory_format=torch.contiguous_format),
        bias=None if conv.bias is None else conv.bias.detach().clone(),
        native=native,
    )


def native_of(conv: AnyConvolution) -> NativeConvolution:
    """The options of a convolution, as plain numbers."""
    padding = conv.padding
    return NativeConvolution(
        kernel_size=_integers(conv.kernel_size),
        stride=_integers(conv.stride),
        padding=padding if isinstance(padding, str) else _integers(padding),
        dilation=_integers(conv.dilation),
        padding_mode=conv.padding_mode,
        output_padding=_integers(conv.output_padding),
        transposed=conv.transposed,
    )


def _integers(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in sizes)


def geometry_of(conv: AnyConvolution) -> Geometry:
    """Read the geometry of a convolution or a transposed convolution.

    Raises:
        ValueError: an option that torch's constructor takes, and its convolution does not.
    """
    _check_options(conv)
    native = native_of(conv)
    d = len(native.kernel_size)
    ones = (1,) * d
    extent = tuple(r * (k - 1) for r, k in zip(native.dilation, native.kernel_size, strict=True))
    if conv.transposed:
        assert not isinstance(native.padding, str)  # torch refuses names here
        reach = tuple(e - p for e, p in zip(extent, native.padding, strict=True))
        before, after = reach, reach
    elif native.padding == "same":
        # torch puts the odd one out at the end.
        before = tuple(e // 2 for e in extent)
        after = tuple(e - e // 2 for e in extent)
    elif native.padding == "valid":
        before = after = (0,) * d
    else:
        assert not isinstance(native.padding, str)
        before = after = native.padding
    return Geometry(
        kernel_size=native.kernel_size,
        dilation=native.dilation,
        before=before,
        after=after,
        query_spacing=ones if conv.transposed else native.stride,
        pixel_spacing=native.stride if conv.transposed else ones,
        output_padding=native.output_padding if conv.transposed else (0,) * d,
        transposed=conv.transposed,
    )


def check_sizes(name: str, sizes: Sequence[object], least: int | None) -> None:
    """Raise a ValueError unless an option of a module is made of integers, none below the least."""
    if not all(isinstance(n, Integral) and (least is None or int(n) >= least) for n in sizes):
        limit = "" if least is None else f" of at least {least}"
        raise ValueError(f"conv has {name} {tuple(sizes)}; accepted: integers{limit}")


def _check_options(conv: AnyConvolution) -> None:
    for name in ("kernel_size", "stride", "dilation"):
        check_sizes(name, getattr(conv, name), 1)
    if conv.transposed:
        check_sizes("padding", tuple(conv.padding), 0)
        check_sizes("output_padding", conv.output_padding, None)
    elif not isinstance(conv.padding, str):
        # torch adds the other borders by itself, and takes a negative padding for a cut.
        check_sizes("padding", conv.padding, 0 if conv.padding_mode == "zeros" else None)


def check_convolution(conv: AnyConvolution) -> None:
    """Raise unless the module computes just what its class says, with a weight of its own."""
    check_kind(conv)
    if parametrize.is_parametrized(conv):
        names = ", ".join(conv.parametrizations)  # type: ignore[arg-type]
        raise TypeError(
            f"conv has a parametrisation of {names}; accepted: plain parameters, as "
            "torch.nn.utils.parametrize.remove_parametrizations leaves them"
        )
    check_forward(conv)
    check_hooks(conv)
    check_numbers(conv.weight)


def check_kind(conv: AnyConvolution) -> type[AnyConvolution]:
    """The class of torch's that the module is one of; raise if there is none, or it is lazy."""
    kind = next((c for c in CONVOLUTIONS if isinstance(conv, c)), None)
    if kind is None:
        raise TypeError(
            f"conv is a {type(conv).__name__}; accepted: "
            + ", ".join(f"nn.{c.__name__}" for c in CONVOLUTIONS)
        )
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin):
        raise TypeError(
            f"conv is a lazy {type(conv).__name__}; accepted: one that has seen an input"
        )
    return kind


def check_forward(conv: AnyConvolution) -> None:
    """Raise if a subclass, or the module itself, computes in a way of its own."""
    own, kind = type(conv), check_kind(conv)
    overridden = [
        name for name in OVERRIDES if getattr(own, name, None) is not getattr(kind, name, None)
    ]
    if overridden or "forward" in vars(conv):
        raise TypeError(
            f"conv is a {own.__name__} with a {(overridden or ['forward'])[0]} of its own; "
            f"accepted: one that computes what nn.{kind.__name__} computes"
        )


def check_hooks(module: nn.Module, allowed: tuple[type, ...] = ()) -> None:
    """Raise if a module has a hook, other than one of the allowed classes."""
    hooks = [hook for kind in HOOKS for hook in getattr(module, kind).values()]
    if undue := [hook for hook in hooks if not isinstance(hook, allowed)]:
        name = getattr(undue[0], "__name__", type(undue[0]).__name__)
        raise TypeError(
            f"conv has a forward or backward hook, {name}, which attention would not run; "
            "accepted: none"
        )


def check_numbers(weight: Tensor) -> None:
    """Raise unless a weight is real, and of one of the four formats."""
    if weight.is_complex():
        raise TypeError(f"conv has complex weights ({weight.dtype}); accepted: real ones")
    check_format(weight.dtype, "conv")
