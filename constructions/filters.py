"""Filters whose weights depend on the image: the layer itself, with its content terms alive.

    A_{q,k} =   X_q W_qry W_key^T X_k^T    pixels that look alike: non-local means, bilateral filter
              + X_q W_qry Ŵ_key^T r_δ      a shift for each pixel: deformable convolution
              + u^T W_key^T X_k^T          a certainty for each pixel: normalised convolution
              + v^T Ŵ_key^T r_δ            a shift for each head: convolution

(arXiv 1911.03584, eq. 8.) Theorem: `four_score_terms_are_four_filters`. Every filter is a module
with a `layer`, a `MultiHeadSelfAttention`, and `tokens`, the image that the layer is called on: the
pixels, beside channels that are made of them or given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.conversion import attention_from_conv
from constructions.encodings import Encoding, Lattice, Quadratic
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.normalisers import NORMALISERS

__all__ = ["Deformable", "NonlocalMeans", "NormalisedMean", "bilateral"]

CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


@dataclass(frozen=True)
class WithRoom(Encoding):
    """An encoding with features that are 0 everywhere: room for content in the key dimension.

    Content that stands there meets no position: X_q W_qry Ŵ_key^T r_δ is 0.

    Args:
        given: the encoding.
        room: how many features are added.
    """

    given: Encoding
    room: int

    @property
    def crowded(self) -> bool:
        """As the encoding."""
        return self.given.crowded

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, D_p + room) and names (H, D_p + room); see `Encoding.encode`."""
        features, names = self.given.encode(displacements, shifts, grid)
        return F.pad(features, (0, self.room)), F.pad(names, (0, self.room))

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """That of the encoding."""
        return self.given.gap(shifts, grid)


class NonlocalMeans(nn.Module):
    """Non-local means: each pixel the mean of all, weighted by how much their patches look alike.

        Y_q = Σ_k w_k X_k / Σ_k w_k
        w_k = exp(-‖P_q - P_k‖² / strength² - ‖k - q‖² / (2 spatial²))

    One head: of the squared distance of patches, 2 P_q·P_k is the content term, -‖P_k‖² the bias of
    the keys, and softmax ignores ‖P_q‖². Tokens are a pixel's patch, the image replicated beyond
    its edge, and the patch's squared norm. With patches of one pixel and a finite `spatial` this is
    the bilateral filter. All pixels are searched. Theorem: `four_score_terms_are_four_filters`.

    Args:
        patch: side of a patch, odd.
        strength: how unlike patches may be; the usual h.
        spatial: standard deviation of the distance, in pixels; None for no regard to positions.
        channels: of the image.
        dimension: of the image, 1, 2 or 3.
        dtype: of the image.

    Raises:
        ValueError: an even patch, a number that is not positive and finite, or another dimension.
    """

    def __init__(
        self,
        patch: int,
        strength: float,
        *,
        spatial: float | None = None,
        channels: int = 1,
        dimension: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_dimension(dimension)
        if patch < 1 or patch % 2 == 0:
            raise ValueError(f"patch is {patch}; accepted: an odd, positive integer")
        _check_positive("strength", strength)
        if spatial is not None:
            _check_positive("spatial", spatial)
        self.patch, self.channels, self.dimension = patch, channels, dimension
        width = channels * patch**dimension
        centre = patch**dimension // 2
        self.layer = _of_one_head(
            [c * patch**dimension + centre for c in range(channels)],
            width + 1,
            WithRoom(Quadratic(), width + 1),
            None if spatial is None else 1 / (2 * spatial**2),
            dimension,
            dtype,
        )
        query, key, bias = _no_content(self.layer)
        first = dimension + 1  # beyond the features of positions
        for entry in range(width):
            query[0, entry, first + entry] = 2 / strength**2
            key[0, entry, first + entry] = 1
        key[0, width, first + width] = 1
        bias[0, first + width] = -1 / strength**2
        _set_content(self.layer, query, key, bias)

    def tokens(self, image: Tensor) -> Tensor:
        """Patches and their squared norms, (N, channels · patch^d + 1, *spatial)."""
        reach = self.patch // 2
        padded = F.pad(image, (reach,) * (2 * self.dimension), mode="replicate") if reach else image
        for axis in range(self.dimension):
            padded = padded.unfold(2 + axis, self.patch, 1)
        patches = padded.flatten(2 + self.dimension).movedim(-1, 2).flatten(1, 2)
        return torch.cat([patches, patches.square().sum(dim=1, keepdim=True)], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Filter (N, channels, *spatial)."""
        filtered: Tensor = self.layer(self.tokens(image))
        return filtered


def bilateral(spatial: float, tonal: float, **options: Any) -> NonlocalMeans:
    """The bilateral filter: a mean of pixels that are near, and alike.

        w_k = exp(-‖k - q‖² / (2 spatial²) - ‖X_q - X_k‖² / (2 tonal²))

    Args:
        spatial: standard deviation of the distance, in pixels.
        tonal: standard deviation of the difference of two pixels.
        options: `channels`, `dimension` and `dtype` of `NonlocalMeans`.

    Raises:
        ValueError: a number that is not positive and finite.
    """
    _check_positive("tonal", tonal)
    return NonlocalMeans(1, math.sqrt(2) * tonal, spatial=spatial, **options)


class NormalisedMean(nn.Module):
    """Normalised convolution with a Gaussian: a local mean of pixels, each as certain as it is.

        Y_q = Σ_k c_k w_k X_k / Σ_k c_k w_k,    w_k = exp(-‖k - q‖² / (2 spatial²)),  c_k = exp(s_k)

    One head, whose bias of the keys is the channel s. Theorem: `four_score_terms_are_four_filters`.

    Args:
        spatial: standard deviation of the distance, in pixels; None for no regard to positions.
        channels: of the image.
        dimension: of the image, 1, 2 or 3.
        dtype: of the image.

    Raises:
        ValueError: a number that is not positive and finite, or another dimension.
    """

    def __init__(
        self,
        spatial: float | None,
        *,
        channels: int = 1,
        dimension: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_dimension(dimension)
        if spatial is not None:
            _check_positive("spatial", spatial)
        sharpness = None if spatial is None else 1 / (2 * spatial**2)
        chosen = list(range(channels))
        encoding = WithRoom(Quadratic(), 1)
        self.layer = _of_one_head(chosen, channels + 1, encoding, sharpness, dimension, dtype)
        query, key, bias = _no_content(self.layer)
        key[0, channels, -1] = 1
        bias[0, -1] = 1
        _set_content(self.layer, query, key, bias)

    def tokens(self, image: Tensor, certainty: Tensor) -> Tensor:
        """The image and the logarithm of its certainty, (N, channels + 1, *spatial)."""
        return torch.cat([image, certainty], dim=1)

    def forward(self, image: Tensor, certainty: Tensor) -> Tensor:
        """Filter (N, channels, *spatial), with the logarithm of the certainty (N, 1, *spatial)."""
        filtered: Tensor = self.layer(self.tokens(image, certainty))
        return filtered


class Deformable(nn.Module):
    """Deformable convolution that takes the nearest pixel: each tap looks where its offset says.

        Y_q = b + Σ_h X_{nearest(q + Δ_h + p_h(q))} W_h

    One head for each tap. Of the squared distance to q + Δ_h + p_h(q), 2 p·δ is the term of query
    and position. A target beyond the edge sees the nearest pixel, as with replicated borders. The
    sharpness is the power of two from which on integer offsets are exact, as long as all scores
    have an exact number in the accumulator's format; an offset that is f off an integer on some
    axis needs 1 / (1 - 2 |f|) times as much, and half-way pixels are averaged. Theorem:
    `four_score_terms_are_four_filters`.

    Args:
        conv: an `nn.Conv1d/2d/3d` of one group that returns the size that it takes, its
            padding_mode "replicate" unless it has one tap.
        sharpness: None for the power of two that saturates the format.

    Raises:
        TypeError: conv is no convolution.
        ValueError: another convolution.
    """

    def __init__(
        self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, sharpness: float | None = None
    ) -> None:
        super().__init__()
        if not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise TypeError(f"conv is a {type(conv).__name__}; accepted: nn.Conv1d, 2d or 3d")
        d, taps = len(conv.kernel_size), math.prod(conv.kernel_size)
        sides = zip(conv.kernel_size, conv.dilation, strict=True)
        reach = tuple(r * (k - 1) for k, r in sides)
        padding: Any = tuple(r // 2 for r in reach) if conv.padding == "same" else conv.padding
        keeps_size = max(conv.stride) == 1 and tuple(2 * p for p in padding) == reach
        if conv.groups > 1 or not keeps_size or (taps > 1 and conv.padding_mode != "replicate"):
            raise ValueError(
                f"conv is {conv}; accepted: one group, an output of the size of the image, and "
                "padding_mode 'replicate'"
            )
        dtype, device = conv.weight.dtype, conv.weight.device
        wide = CONVOLUTIONS[d](
            conv.in_channels + d * taps,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            padding=padding,
            dilation=conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            dtype=dtype,
            device=device,
        )
        with torch.no_grad():
            wide.weight.zero_()
            wide.weight[:, : conv.in_channels] = conv.weight
            if wide.bias is not None and conv.bias is not None:
                wide.bias.copy_(conv.bias)
        if sharpness is None:
            sharpness = 2.0 ** math.ceil(math.log2(NORMALISERS["softmax"].one_hot_gap(dtype)))
        self.layer = attention_from_conv(wide, sharpness=sharpness, evaluation="dense")
        query, key, bias = _no_content(self.layer)
        for head in range(taps):
            for axis in range(d):
                query[head, conv.in_channels + d * head + axis, 1 + axis] = 2 * sharpness
        _set_content(self.layer, query, key, bias)

    def tokens(self, image: Tensor, offsets: Tensor) -> Tensor:
        """The image and its offsets, (N, channels + taps · d, *spatial)."""
        return torch.cat([image, offsets], dim=1)

    def forward(self, image: Tensor, offsets: Tensor) -> Tensor:
        """Filter an image.

        Args:
            image: (N, D_in, *spatial).
            offsets: (N, taps · d, *spatial), by tap, then by axis, added to the taps' own.

        Returns:
            (N, D_out, *spatial).
        """
        filtered: Tensor = self.layer(self.tokens(image, offsets))
        return filtered


def _of_one_head(
    values: Sequence[int],
    width: int,
    encoding: Encoding,
    sharpness: float | None,
    dimension: int,
    dtype: torch.dtype,
) -> MultiHeadSelfAttention:
    """A head about each pixel that passes on some channels of its tokens.

    Args:
        values: the channels.
        width: channels of a token.
        encoding: of positions.
        sharpness: of positions; None for no regard to them.
        dimension: d.
        dtype: of the layer.
    """
    conv = CONVOLUTIONS[dimension](width, len(values), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        conv.weight.zero_()
        for output, channel in enumerate(values):
            conv.weight[output, channel] = 1
    conv.requires_grad_(False)
    known = 1.0 if sharpness is None else sharpness
    layer = attention_from_conv(conv, encoding=encoding, sharpness=known, evaluation="dense")
    if sharpness is None:
        layer.positional_key.zero_()
    return layer


def _no_content(layer: MultiHeadSelfAttention) -> tuple[Tensor, Tensor, Tensor]:
    """W_qry, W_key and u of zeros."""
    heads, width = layer.num_heads, layer.in_channels
    own, dtype = layer.positional_key.shape[-1], layer.dtype
    assert width is not None
    zeros = torch.zeros(heads, width, own, dtype=dtype, device=layer.positional_key.device)
    return zeros, zeros.clone(), zeros[:, 0].clone()


def _set_content(layer: MultiHeadSelfAttention, query: Tensor, key: Tensor, bias: Tensor) -> None:
    layer.query, layer.key, layer.content_bias = (
        nn.Parameter(term, requires_grad=False) for term in (query, key, bias)
    )


def _check_positive(argument: str, given: float) -> None:
    if not 0 < given < math.inf:
        raise ValueError(f"{argument} is {given}; accepted: a positive, finite number")


def _check_dimension(given: int) -> None:
    if given not in CONVOLUTIONS:
        raise ValueError(f"dimension is {given}; accepted: 1, 2 or 3")
