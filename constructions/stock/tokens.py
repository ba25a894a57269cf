"""Tokens: a layer of images in the place of a transformer's attention, on a sequence of tokens.

The file is not named as its function is: as a submodule it would take the function's name in the
package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["OnTokens", "on_tokens"]


class OnTokens(nn.Module):
    """A layer of images, called on the tokens of a vision transformer; see `on_tokens`.

    Args:
        layer: from (N, C, *grid) to the same.
        grid: pixels on each axis.
        prefix: tokens before the pixels.
    """

    def __init__(self, layer: nn.Module, grid: tuple[int, ...], prefix: int) -> None:
        super().__init__()
        self.layer = layer
        self.grid = grid
        self.prefix = prefix

    def forward(
        self, tokens: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Apply the layer to the tokens of the pixels.

        Args:
            tokens: (N, prefix + pixels, C), the pixels row-major.
            attn_mask: None; blocks of timm name it.
            is_causal: false; likewise.

        Returns:
            The same shape; the first `prefix` tokens are those that were given.

        Raises:
            ValueError: another number of tokens, a mask, or a layer that changes the shape of its
                image.
        """
        if attn_mask is not None or is_causal:
            raise ValueError(
                "attn_mask or is_causal is given; accepted: neither, since all pixels are seen"
            )
        length = self.prefix + math.prod(self.grid)
        if tokens.dim() != 3 or tokens.shape[1] != length:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}; accepted: (N, {length}, C), a token for "
                f"each of {self.prefix} prefixes and {' x '.join(map(str, self.grid))} pixels"
            )
        passed, pixels = tokens[:, : self.prefix], tokens[:, self.prefix :]
        image = pixels.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *self.grid)
        y: Tensor = self.layer(image.contiguous())
        if y.shape != image.shape:
            raise ValueError(
                f"layer made {tuple(y.shape)} of {tuple(image.shape)}; accepted: a layer that "
                "keeps the shape, with as many output channels as input channels and stride 1"
            )
        return torch.cat([passed, y.flatten(2).transpose(1, 2)], dim=1)

    def extra_repr(self) -> str:
        """Describe the module as torch's own do."""
        return f"grid={self.grid}, prefix={self.prefix}"


def on_tokens(layer: nn.Module, grid: Sequence[int], prefix: int = 1) -> OnTokens:
    """A layer of images as a layer of tokens: (N, prefix + pixels, C) to the same.

    The tokens of the pixels, row-major, are the image that the layer sees; those before them, a
    class token and registers, are passed by. So an attention layer that a convolution made stands
    where a vision transformer has its own, as `attn` of timm's `Block`, and the block starts as a
    convolution.

    Args:
        layer: a `MultiHeadSelfAttention`, or any module from (N, C, *grid) to the same.
        grid: pixels on each axis, (H, W) for a plane.
        prefix: how many tokens stand before the pixels.

    Raises:
        TypeError: layer is not a module, or grid and prefix are not integers.
        ValueError: an empty grid, or a negative prefix.
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer is a {type(layer).__name__}; accepted: a torch.nn.Module")
    if not isinstance(grid, Sequence) or not all(type(n) is int for n in grid):
        raise TypeError(f"grid is {grid!r}; accepted: a sequence of integers, such as (14, 14)")
    if type(prefix) is not int:
        raise TypeError(f"prefix is {prefix!r}; accepted: an integer")
    if not grid or min(grid) < 1:
        raise ValueError(f"grid is {tuple(grid)}; accepted: at least one pixel on each axis")
    if prefix < 0:
        raise ValueError(f"prefix is {prefix}; accepted: 0 or more")
    return OnTokens(layer, tuple(grid), prefix)
