"""Canvases: where the tokens of an image stand, and which of them ask for an output.

Of the border a module of another library knows nothing. Either the tokens reach as far as the
taps, those beyond the image zeros; or there is one token a pixel, and the module's own scores make
the border (theorem `borders_are_limits_of_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import Zeros, padded
from constructions.geometry.window import WindowGeometry
from constructions.heads.heads import Heads
from constructions.normalisers import Softmax
from constructions.sources import AnyConvolution, Stencil, stencil_of
from constructions.stock.stock import Stock

BORDERS = "theorem borders_are_limits_of_attention"


@dataclass(frozen=True)
class Canvas:
    """Where the tokens of an image stand, and which of them ask for an output.

    Args:
        pixels: of the image.
        tokens: a box; those that no pixel stands at are zeros.
        queries: those tokens that ask for an output.
        moved: by how much each query stands beside the place from which a convolution counts the
            offsets of its taps; they are as much less.
    """

    pixels: Lattice
    tokens: Lattice
    queries: Lattice
    moved: tuple[int, ...]

    @classmethod
    def with_zeros(
        cls, stencil: Stencil, shape: tuple[int, ...], *, at_the_end: bool = False
    ) -> Canvas:
        """Tokens at every place that a tap is asked for, zeros where there is no pixel.

        A query is the token in the middle of its taps, or at the end of them.

        Raises:
            ValueError: what stands beyond the edge is not zero, or no output is left.
        """
        geometry = stencil.geometry
        tokens = geometry.targets(shape)
        if stencil.border.name != "zeros" and geometry.can_miss:
            raise ValueError(
                f"conv has padding_mode {stencil.border.name!r}; accepted: 'zeros' or no padding, "
                "since the tokens that are put beyond the edge are zeros, and the scores of this "
                f"module make no border of their own ({BORDERS})"
            )
        reach = (r * (k - 1) for k, r in zip(geometry.kernel_size, geometry.dilation, strict=True))
        part = 1 if at_the_end else 2
        moved = tuple(o + far // part for o, far in zip(tokens.origin, reach, strict=True))
        queries = replace(geometry.queries(shape), origin=moved)
        return cls(geometry.pixels(shape), tokens, queries, moved)

    @classmethod
    def of_pixels(cls, stencil: Stencil, shape: tuple[int, ...], border: str) -> Canvas:
        """One token a pixel, for a module whose scores make a border.

        Raises:
            ValueError: another border is asked for, an output has no pixel to ask for it, or no
                output is left.
        """
        if stencil.border.name != border and stencil.geometry.can_miss:
            raise ValueError(
                f"conv has padding_mode {stencil.border.name!r}; accepted: {border!r} or no "
                f"padding, the border that the scores of this module make ({BORDERS})"
            )
        pixels, queries = stencil.geometry.pixels(shape), stencil.geometry.queries(shape)
        if max(pixels.spacing) > 1 or any(
            last > end for last, end in zip(queries.last, pixels.last, strict=True)
        ):
            raise ValueError(
                f"conv makes an output of shape {queries.shape} of an image of shape {shape}; "
                "accepted: one with no more outputs than pixels, not transposed, since the pixels "
                f"are the tokens, and the scores of this module make the border ({BORDERS})"
            )
        return cls(pixels, pixels, queries, (0,) * len(shape))

    def squared(self) -> Canvas:
        """With as many tokens on every axis, zeros after the last."""
        side = max(self.tokens.shape)
        return replace(self, tokens=replace(self.tokens, shape=(side,) * len(self.tokens.shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the box of tokens."""
        return self.tokens.shape

    def shifts(self, heads: Heads) -> Tensor:
        """Where each head looks, from its query: key minus query, (H, d), integers."""
        return heads.shifts.to("cpu", torch.int64) - torch.tensor(self.moved)

    def flat(self, shifts: Tensor) -> Tensor:
        """The same in the row-major order of the tokens, (H,); on a box it is one to one."""
        steps = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return shifts @ torch.tensor(steps)

    def place(self, x: Tensor, width: int) -> Tensor:
        """One token a place, (N, tokens, width): the channels of its pixel, and zeros."""
        image = padded(x, self.pixels, self.tokens, Zeros())
        tokens = image.flatten(2).transpose(1, 2)
        return F.pad(tokens, (0, width - tokens.shape[2]))

    def select(self, y: Tensor, channels: int) -> Tensor:
        """The outputs, (N, channels, *output), of (N, tokens, width or more)."""
        image = y[..., :channels].transpose(1, 2).reshape(len(y), channels, *self.shape)
        origins = zip(self.queries.axes(y.device), self.tokens.origin, strict=True)
        for axis, (places, origin) in enumerate(origins):
            image = image.index_select(2 + axis, places - origin)
        return image


class OnCanvas(Stock):
    """A module that takes one sequence of tokens, and returns one, alone or first of a tuple.

    Args:
        module: the target's own, its parameters set.
        canvas: where the tokens stand.
        channels: D_in and D_out.
        width: of the tokens.
        constant: whether the channel after those of the pixel is 1 at every token.
    """

    def __init__(
        self,
        module: nn.Module,
        canvas: Canvas,
        channels: tuple[int, int],
        width: int,
        *,
        constant: bool = False,
    ) -> None:
        super().__init__(module.eval(), canvas.pixels.shape, channels[0])
        self.canvas, self.out_channels = canvas, channels[1]
        self.width, self.constant = width, constant

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """One token a place, (N, tokens, width)."""
        return (self.placed(x),)

    def placed(self, x: Tensor) -> Tensor:
        """The channels of every place, zeros, and the constant if there is one."""
        tokens = self.canvas.place(x, self.width)
        if self.constant:
            tokens[..., self.in_channels] = 1
        return tokens

    def image(self, y: object) -> Tensor:
        """The outputs, (N, D_out, *output)."""
        first = y[0] if isinstance(y, tuple) else y
        assert isinstance(first, Tensor)
        return self.canvas.select(first, self.out_channels)


# What every adapter asks of a convolution ---------------------------------------------------------


def stencil_for(
    conv: AnyConvolution, spatial_shape: Sequence[int], dimensions: Sequence[int]
) -> tuple[Stencil, tuple[int, ...]]:
    """Check a convolution and the size of its images for a module of so many dimensions.

    Raises:
        TypeError: conv is no convolution of torch's own.
        ValueError: it has another dimension or format, or the size another length.
    """
    stencil = stencil_of(conv)
    if isinstance(stencil.geometry, WindowGeometry):
        raise TypeError(f"conv is a {type(conv).__name__}; accepted: a convolution")
    d = stencil.geometry.dimension
    if d not in dimensions:
        accepted = " or ".join(map(str, dimensions))
        raise ValueError(
            f"conv has {d} dimensions; accepted: {accepted}, those of the positions that this "
            "module knows"
        )
    if stencil.matrices.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"conv has dtype {stencil.matrices.dtype}; accepted: float32 or float64, since a "
            "module rounds what it hands from one of its matrices to the next (theorem "
            "layer_error_is_certified)"
        )
    shape = tuple(int(n) for n in spatial_shape)
    if len(shape) != d or min(shape) < 1:
        raise ValueError(f"spatial_shape is {shape}; accepted: {d} sizes of at least 1")
    return stencil, shape


def looking_back(stencil: Stencil) -> Stencil:
    """A convolution of one dimension that is padded so as to end at its query.

    Raises:
        ValueError: it is padded already, strided or transposed.
    """
    geometry = stencil.geometry
    reach = tuple(r * (k - 1) for k, r in zip(geometry.kernel_size, geometry.dilation, strict=True))
    plain = replace(geometry, before=(0,), after=(0,), query_spacing=(1,), transposed=False)
    if geometry.dimension != 1 or geometry != plain:
        raise ValueError(
            f"conv is of {geometry.dimension} dimensions, with padding {geometry.before}, stride "
            f"{geometry.query_spacing} and transposed {geometry.transposed}; accepted: nn.Conv1d "
            "without padding and of stride 1 for causal=True, which puts the zeros before the "
            f"first pixel ({BORDERS})"
        )
    return replace(stencil, geometry=replace(geometry, before=reach), border=Zeros())


def gap_for(dtype: torch.dtype, sharpness: float | None, *, sink: bool = False) -> float:
    """The gap in score: the one that is given, or a power of two from which on weights are one-hot.

    A power of two multiplies without rounding, so that scores are exact where integers are. A sink
    stands at half of the gap, which has to do for it.

    Raises:
        ValueError: sharpness is not positive and finite.
    """
    if sharpness is None:
        return float(2.0 ** math.ceil(math.log2(Softmax().one_hot_gap(dtype) * (1 + sink))))
    if not 0 < sharpness < math.inf:
        raise ValueError(f"sharpness is {sharpness}; accepted: a positive, finite number or None")
    return float(sharpness)


def dense_factors(heads: Heads, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """W_val, (H, D_in, D_h), and W_out, (H, D_h, D_out), zeros between groups included.

    With a bias the values have one more channel in and out, a constant that the first head hands
    on: rows of attention sum to 1.
    """
    value, output = (_blocks(part) for part in heads.matrices())
    if bias is not None:
        value, output = F.pad(value, (0, 1, 0, 1)), F.pad(output, (0, 0, 0, 1))
        value[0, -1, -1], output[0, -1] = 1, bias
    return value, output


def _blocks(part: Tensor) -> Tensor:
    """(H, G, rows, columns) as block-diagonal matrices (H, G rows, G columns)."""
    heads, groups, rows, columns = part.shape
    whole = part.new_zeros(heads, groups, rows, groups, columns)
    for group in range(groups):
        whole[:, group, :, group] = part[:, group]
    return whole.reshape(heads, groups * rows, groups * columns)
