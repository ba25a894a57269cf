"""Convolutions and poolings as torch calls them: their options, by torch's names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from constructions.sources.sums import plain_sum


@dataclass(frozen=True)
class NativeConvolution:
    """A convolution of torch's: what `nn.ConvNd` and `nn.ConvTransposeNd` are made with.

    Args:
        kernel_size: taps per axis.
        stride: as in torch.
        padding: one number per axis, or "same" or "valid".
        dilation: as in torch.
        padding_mode: "zeros", "replicate", "reflect" or "circular".
        output_padding: of a transposed convolution, else zeros.
        transposed: whether it is one.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    padding_mode: str
    output_padding: tuple[int, ...]
    transposed: bool

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        output_padding: tuple[int, ...] | None = None,
    ) -> Tensor:
        """The convolution, by the call that torch's module makes, as a plain sum.

        Args:
            x: batched or not.
            weight: in torch's shape.
            bias: (D_out,) or None.
            groups: as in torch.
            output_padding: of a transposed convolution; None for its own.
        """
        called = partial(self.as_torch_does, weight, bias, groups, output_padding)
        is_batched = x.dim() == len(self.kernel_size) + 2
        return plain_sum(called, x) if is_batched else called(x)

    def as_torch_does(
        self,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        output_padding: tuple[int, ...] | None,
        x: Tensor,
    ) -> Tensor:
        """The call that torch's module makes, whatever that computes with torch's flags."""
        d = len(self.kernel_size) - 1
        if self.transposed:
            transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[d]
            extra = self.output_padding if output_padding is None else output_padding
            padding = self.padding
            assert not isinstance(padding, str)
            return transposed(x, weight, bias, self.stride, padding, extra, groups, self.dilation)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[d]
        if self.padding_mode == "zeros":
            return convolution(x, weight, bias, self.stride, self.padding, self.dilation, groups)
        x = F.pad(x, self._sides(), self.padding_mode)
        return convolution(x, weight, bias, self.stride, 0, self.dilation, groups)

    def _sides(self) -> list[int]:
        """Padding as `F.pad` takes it: the last axis first, both its sides."""
        if self.padding == "valid":
            return [0, 0] * len(self.kernel_size)
        sides = []
        for axis in reversed(range(len(self.kernel_size))):
            if isinstance(self.padding, str):  # "same": the odd one out at the end
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [self.padding[axis]] * 2
        return sides

    def taps_of(self, weight: Tensor, groups: int) -> Tensor:
        """The matrices of the taps in the order of their offsets, (taps, G, D_in / G, D_out / G).

        A view; of a transposed convolution, whose offsets fall as the kernel index grows, a copy.
        """
        blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        if self.transposed:  # (D_in, D_out / G, *kernel)
            return blocks.permute(3, 0, 1, 2).flip(0)
        return blocks.permute(3, 0, 2, 1)  # (D_out, D_in / G, *kernel)

    def weight_of(self, matrices: Tensor) -> Tensor:
        """The kernel in torch's shape, of matrices (taps, G, D_in / G, D_out / G)."""
        _, groups, inputs, outputs = matrices.shape
        if self.transposed:
            blocks = matrices.flip(0).permute(1, 2, 3, 0)
            return blocks.reshape(groups * inputs, outputs, *self.kernel_size)
        return matrices.permute(1, 3, 2, 0).reshape(groups * outputs, inputs, *self.kernel_size)

    @property
    def taps(self) -> int:
        """The number of taps."""
        return math.prod(self.kernel_size)


@dataclass(frozen=True)
class NativePooling:
    """An average pooling of torch's: what `nn.AvgPoolNd` is made with."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None


@dataclass(frozen=True)
class NativeAdaptive:
    """An adaptive average pooling of torch's: what `nn.AdaptiveAvgPoolNd` is made with."""

    output_size: tuple[int | None, ...]


AnyNative = NativeConvolution | NativePooling | NativeAdaptive
"""What a layer can have been read from."""
