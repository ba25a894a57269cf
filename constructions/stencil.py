"""The canonical form of any torch convolution: taps on two lattices.

    Y_q = b + sum over taps (δ, W_δ) of X_{q+δ} W_δ

Every option of torch is a choice of offsets δ (dilation, even kernels, padding), of the lattice
that the queries q stand on (stride, output size) or of the lattice that the pixels stand on
(transposed convolution). Nothing depends on the dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from constructions.borders import BORDERS, Border
from constructions.formats import check_format
from constructions.lattice import Lattice

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


@dataclass(frozen=True)
class Geometry:
    """Where the pixels, the queries and the taps of a convolution stand.

    The offset of kernel index j is `j * dilation - before`, always k - q, key minus query (the
    paper's Lemma 2; its Lemma 1 has q - k). All tuples have one entry per dimension.

    Args:
        kernel_size: taps per axis.
        dilation: distance between taps.
        before: how far the targets begin before the first pixel; negative when pixels are cut.
        after: how far they end after the last pixel.
        query_spacing: distance between queries, the stride of a convolution.
        pixel_spacing: distance between pixels, the stride of a transposed convolution.
        output_padding: queries appended at the end of a transposed convolution.
        transposed: whether `output_size` may choose the output padding at each call.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    query_spacing: tuple[int, ...]
    pixel_spacing: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool

    @classmethod
    def from_conv(cls, conv: AnyConvolution) -> Geometry:
        """Read the geometry of a convolution or a transposed convolution.

        Raises:
            ValueError: an option that torch's constructor takes, and its convolution does not.
        """
        _check_options(conv)
        d = len(conv.kernel_size)
        ones = (1,) * d
        extent = tuple(r * (k - 1) for r, k in zip(conv.dilation, conv.kernel_size, strict=True))
        if conv.transposed:
            assert not isinstance(conv.padding, str)  # torch refuses names here
            reach = tuple(e - p for e, p in zip(extent, conv.padding, strict=True))
            before, after = reach, reach
        elif conv.padding == "same":
            # torch puts the odd one out at the end.
            before = tuple(e // 2 for e in extent)
            after = tuple(e - e // 2 for e in extent)
        elif conv.padding == "valid":
            before = after = (0,) * d
        else:
            before = after = tuple(int(p) for p in conv.padding)
        return cls(
            kernel_size=tuple(conv.kernel_size),
            dilation=tuple(conv.dilation),
            before=before,
            after=after,
            query_spacing=ones if conv.transposed else tuple(conv.stride),
            pixel_spacing=tuple(conv.stride) if conv.transposed else ones,
            output_padding=tuple(conv.output_padding) if conv.transposed else (0,) * d,
            transposed=conv.transposed,
        )

    @property
    def dimension(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel_size)

    @property
    def can_miss(self) -> bool:
        """Whether a head can be asked for a place where there is no pixel."""
        beyond = any(before > 0 for before in self.before) or any(
            after + extra > 0 for after, extra in zip(self.after, self.output_padding, strict=True)
        )
        return beyond or max(self.pixel_spacing) > 1

    @property
    def reach_is_bounded(self) -> bool:
        """Whether targets leave the pixels by no more than shifts and spacing say.

        An axis with one tap has a dilation, which lets torch append any number of outputs.
        """
        axes = zip(self.kernel_size, self.output_padding, self.pixel_spacing, strict=True)
        return all(taps > 1 or extra < spacing for taps, extra, spacing in axes)

    @property
    def pads_evenly(self) -> bool:
        """Whether the targets are the pixels with the same margin on both sides of each axis."""
        even = self.before == self.after and min(self.before) >= 0
        return even and max(self.pixel_spacing) == 1 and max(self.output_padding) == 0

    @property
    def taps(self) -> int:
        """The number of taps."""
        return math.prod(self.kernel_size)

    def offsets(self, device: torch.device | str | None = None) -> Tensor:
        """The offset δ = k - q of every tap, row-major: int64, shape (taps, d)."""
        kernel = Lattice(self.kernel_size, self.dilation, tuple(-b for b in self.before))
        return kernel.positions(device)

    def pixels(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where the pixels of an image stand; the first one at 0."""
        return Lattice(spatial_shape, self.pixel_spacing, (0,) * self.dimension)

    def targets(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Every position that a tap can be asked for: the padded, zero-stuffed grid.

        Raises:
            ValueError: no output would be left.
        """
        self.queries(spatial_shape)  # raises where nothing is left
        origin = tuple(-b for b in self.before)
        return Lattice(self._target_shape(spatial_shape), (1,) * self.dimension, origin)

    def explicit_keys(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where keys stand if the border is made of keys: at every target."""
        return self.targets(spatial_shape)

    def queries(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where the queries stand, one for each output; the first one at 0.

        Raises:
            ValueError: the kernel is larger than the padded image.
        """
        axes = zip(self.output_padding, self.pixel_spacing, self.dilation, strict=True)
        if self.transposed and not all(0 <= extra < max(s, r) for extra, s, r in axes):
            # Only now: an output_size would have taken its place.
            raise ValueError(
                f"conv has output_padding {self.output_padding}; accepted: 0 or more, less than "
                f"the larger of stride {self.pixel_spacing} and dilation {self.dilation}"
            )
        shape = self._query_shape(spatial_shape)
        if min(shape) < 1:
            raise ValueError(
                f"no output is left: kernel_size {self.kernel_size} with dilation {self.dilation} "
                f"does not fit into the padded image, of shape {self._target_shape(spatial_shape)} "
                f"for padding {self._padding()} and spatial shape {spatial_shape}; accepted: a "
                "larger image"
            )
        return Lattice(shape, self.query_spacing, (0,) * self.dimension)

    def lattices(self, spatial_shape: tuple[int, ...]) -> tuple[Lattice, Lattice, Lattice, Lattice]:
        """The pixels, the targets, the explicit keys and the queries, found once for each shape.

        Raises:
            ValueError: as `queries`.
        """
        found = _lattices.__wrapped__ if torch.compiler.is_compiling() else _lattices
        return found(self, spatial_shape)

    def with_output_size(
        self, spatial_shape: tuple[int, ...], output_size: Sequence[int]
    ) -> Geometry:
        """The geometry whose queries have the given spatial shape, as `ConvTranspose` takes it.

        Args:
            spatial_shape: the input's.
            output_size: d integers, or the whole shape of the output, of which the last d count.

        Raises:
            TypeError: the convolution is not transposed.
            ValueError: the stride allows no such output.
        """
        d = self.dimension
        if not self.transposed:
            raise TypeError("output_size is accepted by transposed convolutions alone")
        if not isinstance(output_size, Sequence) or not all(
            isinstance(n, int) for n in output_size
        ):
            raise ValueError(
                f"output_size is {output_size!r}; accepted: a sequence of {d} integers"
            )
        wanted = tuple(output_size)
        if len(wanted) not in (d, d + 1, d + 2):
            raise ValueError(
                f"output_size must have {d} entries (or the output's rank), got {wanted}"
            )
        wanted = wanted[-d:]
        smallest = replace(self, output_padding=(0,) * d)._query_shape(spatial_shape)
        extra = tuple(w - n for w, n in zip(wanted, smallest, strict=True))
        if any(e < 0 or e >= s for e, s in zip(extra, self.pixel_spacing, strict=True)):
            largest = tuple(n + s - 1 for n, s in zip(smallest, self.pixel_spacing, strict=True))
            raise ValueError(
                f"output_size {wanted} is not possible for spatial shape {spatial_shape}; "
                f"accepted: {smallest} to {largest}"
            )
        return replace(self, output_padding=extra)

    def _padding(self) -> tuple[int, ...]:
        if not self.transposed:
            return self.before
        axes = zip(self.dilation, self.kernel_size, self.before, strict=True)
        return tuple(r * (k - 1) - before for r, k, before in axes)

    def _target_shape(self, spatial_shape: tuple[int, ...]) -> tuple[int, ...]:
        last = self.pixels(spatial_shape).last
        axes = zip(self.before, last, self.after, self.output_padding, strict=True)
        return tuple(before + end + 1 + after + extra for before, end, after, extra in axes)

    def _query_shape(self, spatial_shape: tuple[int, ...]) -> tuple[int, ...]:
        targets = self._target_shape(spatial_shape)
        axes = zip(targets, self.kernel_size, self.dilation, self.query_spacing, strict=True)
        return tuple((n - r * (k - 1) - 1) // s + 1 for n, k, r, s in axes)


@lru_cache(maxsize=1024)
def _lattices(
    geometry: Geometry, shape: tuple[int, ...]
) -> tuple[Lattice, Lattice, Lattice, Lattice]:
    return (
        geometry.pixels(shape),
        geometry.targets(shape),
        geometry.explicit_keys(shape),
        geometry.queries(shape),
    )


@lru_cache(maxsize=1024)
def offsets_in_order(geometry: Geometry) -> list[list[int]]:
    """The offsets of a geometry as plain numbers, not to be changed."""
    return geometry.offsets("cpu").tolist()


@dataclass(frozen=True)
class Stencil:
    """A convolution as a list of taps.

    Args:
        geometry: the taps' offsets and the lattices.
        border: what stands beyond the image's edge.
        matrices: (taps, groups, D_in / groups, D_out / groups), the W_δ as diagonal blocks, in the
            order of `geometry.offsets()`.
        bias: (D_out,) or None.
    """

    geometry: Geometry
    border: Border
    matrices: Tensor
    bias: Tensor | None

    @classmethod
    def from_conv(cls, conv: AnyConvolution) -> Stencil:
        """Read any torch convolution; the tensors are detached and share no memory with it.

        Raises:
            TypeError: conv is not a convolution of torch's own, or computes anything else.
            ValueError: its dtype is none of the four formats.
        """
        check_convolution(conv)
        weight = conv.weight.detach()
        groups, taps = conv.groups, math.prod(conv.kernel_size)
        if conv.transposed:
            # weight: (D_in, D_out / groups, *kernel). The offsets of a transposed convolution
            # fall as the kernel index grows; reversed, they rise as everywhere else.
            blocks = weight.reshape(groups, conv.in_channels // groups, -1, taps)
            matrices = blocks.permute(3, 0, 1, 2).flip(0)
        else:
            # weight: (D_out, D_in / groups, *kernel)
            blocks = weight.reshape(groups, conv.out_channels // groups, -1, taps)
            matrices = blocks.permute(3, 0, 2, 1)
        return cls(
            geometry=Geometry.from_conv(conv),
            border=BORDERS[conv.padding_mode],
            matrices=matrices.clone(memory_format=torch.contiguous_format),
            bias=None if conv.bias is None else conv.bias.detach().clone(),
        )

    @property
    def offsets(self) -> Tensor:
        """The offset δ = k - q of every tap: int64, shape (taps, d)."""
        return self.geometry.offsets(self.matrices.device)

    @property
    def groups(self) -> int:
        """The number of diagonal blocks of every W_δ."""
        return self.matrices.shape[1]

    @property
    def in_channels(self) -> int:
        """D_in."""
        return self.matrices.shape[1] * self.matrices.shape[2]

    @property
    def out_channels(self) -> int:
        """D_out."""
        return self.matrices.shape[1] * self.matrices.shape[3]

    def convolve(self, at_targets: Tensor) -> Tensor:
        """The ordinary convolution, without bias, of what stands at the targets."""
        _, groups, inputs, outputs = self.matrices.shape
        size = groups * outputs, inputs, *self.geometry.kernel_size
        kernel = self.matrices.permute(1, 3, 2, 0).reshape(size)
        geometry = self.geometry
        taps, dilation = geometry.kernel_size[0], geometry.dilation[0]
        stride = geometry.query_spacing[0]

        def bands(part: Tensor) -> Tensor:
            return convolve(geometry, kernel, part, groups=groups)

        return in_bands(bands, at_targets, kernel, dilation * (taps - 1) + 1, stride)


CACHED = 2**22
"""Bytes that a band of rows may take."""


def in_bands(
    convolution: Callable[[Tensor], Tensor],
    padded: Tensor,
    kernel: Tensor,
    extent: int,
    stride: int,
) -> Tensor:
    """A convolution of a padded image, band of rows by band of rows.

    In float64 torch copies each pixel once for each tap: all of a large image leaves the cache.

    Args:
        convolution: without padding.
        padded: (N, D_in, *shape).
        kernel: its weight.
        extent: rows that an output sees.
        stride: rows from output to output.
    """
    rows = (padded.shape[2] - extent) // stride + 1
    each = kernel.element_size() * kernel[:1].numel() * padded[:1, :1, :1].numel()
    height = max(1, CACHED // max(1, each))
    if rows <= height or padded.device.type != "cpu":
        return convolution(padded)
    bands = []
    for start in range(0, rows, height):
        end = min(start + height, rows)
        first, last = start * stride, (end - 1) * stride + extent
        bands.append(convolution(padded[:, :, first:last]))
    return torch.cat(bands, dim=2)


def convolve(
    geometry: Geometry,
    kernel: Tensor,
    at_targets: Tensor,
    bias: Tensor | None = None,
    padding: int | tuple[int, ...] = 0,
    groups: int = 1,
) -> Tensor:
    """The ordinary convolution of what stands at the targets.

    Args:
        geometry: of the convolution.
        kernel: (D_out, D_in / groups, *kernel size), the taps in the order of the offsets.
        at_targets: (N, D_in, *target shape), padded and zero-stuffed.
        bias: (D_out,) or None.
        padding: zeros that torch is to add on both sides of each axis instead.
        groups: diagonal blocks of the matrix at each tap.

    Returns:
        (N, D_out, *query shape).
    """
    convolution = (F.conv1d, F.conv2d, F.conv3d)[geometry.dimension - 1]
    return convolution(
        at_targets,
        kernel,
        bias,
        stride=geometry.query_spacing,
        padding=padding,
        dilation=geometry.dilation,
        groups=groups,
    )


def check_sizes(name: str, sizes: Sequence[object], least: int | None) -> None:
    """Raise a ValueError unless an option of a module is made of integers, none below the least."""
    if not all(isinstance(n, int) and (least is None or n >= least) for n in sizes):
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
    """Raise unless the module computes just what its class says."""
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
    if parametrize.is_parametrized(conv):
        raise TypeError("conv has a parametrisation; accepted: plain parameters")
    own = type(conv)
    overridden = [
        name
        for name in ("forward", "_conv_forward", "_output_padding", "__call__")
        if getattr(own, name, None) is not getattr(kind, name, None)
    ]
    if overridden or "forward" in vars(conv):
        raise TypeError(
            f"conv is a {own.__name__} with a {(overridden or ['forward'])[0]} of its own; "
            f"accepted: one that computes what nn.{kind.__name__} computes"
        )
    if any(getattr(conv, hooks) for hooks in HOOKS):
        raise TypeError(
            "conv has a forward or backward hook, which attention would not run; accepted: none"
        )
    if conv.weight.is_complex():
        raise TypeError(f"conv has complex weights ({conv.weight.dtype}); accepted: real ones")
    check_format(conv.weight.dtype, "conv")


def checked_spatial_shape(x: Tensor, channels: int | None, dimension: int) -> tuple[int, ...]:
    """The last d sizes of an image; raises a ValueError unless it has the channels and a grid.

    Any number of channels will do where none is given.
    """
    d, shape = dimension, tuple(x.shape)
    if len(shape) not in (d + 1, d + 2):
        raise ValueError(
            f"x has shape {shape}; accepted: (channels, *{d} axes) or (batch, channels, *{d} axes)"
        )
    given, spatial = shape[-d - 1], shape[-d:]
    if channels is not None and given != channels:
        raise ValueError(f"x has {given} channels; accepted: {channels}")
    if 0 in spatial:
        raise ValueError(
            f"x has spatial shape {spatial}, an empty grid; accepted: at least one pixel on every "
            "axis"
        )
    return spatial
