"""Stock: a convolution computed by a module that nobody here wrote.

The module is the target's own class with its own forward; the construction sets its parameters, and
an adapter hands it the image as tokens. Tokens hold a pixel's channels and numbers of its position
alone, and what the module returns is selected, scaled by constants and reshaped: the module mixes
the pixels, nothing else does.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Stock(nn.Module):
    """A module of another library, called as the convolution that its parameters express.

    Args:
        module: the target's own, its parameters set.
        spatial_shape: of the images that it takes, in pixels.
        in_channels: D_in of the convolution.
    """

    def __init__(self, module: nn.Module, spatial_shape: tuple[int, ...], in_channels: int) -> None:
        super().__init__()
        self.module = module
        self.spatial_shape = spatial_shape
        self.in_channels = in_channels

    @abstractmethod
    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """What the module is called with: one token for each pixel, from (N, D_in, *spatial)."""

    @abstractmethod
    def image(self, y: object) -> Tensor:
        """The image, (N, D_out, *output), that the module's result holds."""

    def bound(self, x: Tensor) -> Tensor | None:
        """What the output for an image may err by, where a theorem of the module's says so.

        Args:
            x: (N, D_in, *spatial) or (D_in, *spatial), finite.

        Returns:
            float64, of the output's shape; None where the module's arithmetic is a sum of the
            convolution's terms, of which `assert_equivalent` knows the rounding.
        """
        return None

    def forward(self, input: Tensor) -> Tensor:
        """Apply the module to an image.

        Args:
            input: (N, D_in, *spatial) or (D_in, *spatial).

        Returns:
            (N, D_out, *output) or (D_out, *output), as the convolution returns.

        Raises:
            ValueError: the image has another shape than the one the module was made for.
        """
        expected = (self.in_channels, *self.spatial_shape)
        if tuple(input.shape[-len(expected) :]) != expected or input.dim() > len(expected) + 1:
            raise ValueError(
                f"input has shape {tuple(input.shape)}; accepted: (N, {expected})"
                f" or {expected}, the size that this module was made for"
            )
        batched = input.dim() > len(expected)
        y = self.image(self.module(*self.tokens(input if batched else input.unsqueeze(0))))
        return y if batched else y.squeeze(0)
