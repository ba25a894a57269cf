"""Tokens that LayerNorm leaves as they are: every number with both signs, beside a large constant.

The mean of such a token is zero, and its variance that of the constant. Theorem:
`a_transformer_block_is_convolution_and_relu`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.stock.plan import Layout
from constructions.stock.positions import Places


@dataclass(frozen=True)
class Pairs:
    """Where the numbers of a token stand: number i in channels 2i and 2i + 1, once negated.

    Args:
        channels: D_0 of the image, and those of every layer after it.
        places: of the first layer: where tokens stand.
        nowhere: whether there is a token of no pixel, which has a constant of its own.
        magnitude: M, the size of the constant, a power of two.
        width: E of the module.
    """

    channels: tuple[int, ...]
    places: Places
    nowhere: bool
    magnitude: float
    width: int

    @property
    def count(self) -> int:
        """Numbers of a token."""
        return sum(self.channels) + self.places.dimension + 2 + self.nowhere

    def scales(self) -> Tensor:
        """What (p, ‖p‖², 1) is in units of, so that no stored coordinate exceeds 1: powers of two.

        The last is the inverse of the constant.
        """
        keys, queries = (self.places.features(n) for n in (self.places.keys, self.places.queries))
        largest = torch.cat([keys, queries])[:, :-1].abs().amax(0).clamp(min=1)
        units = torch.exp2(torch.log2(largest).ceil())
        return torch.cat([units, units.new_tensor([1 / self.magnitude])])

    def layout(self, layer: int) -> Layout:
        """How a layer reads its input and the positions, and where it writes its output.

        What is read is half of a number less its negative, so that a shift of all channels cancels.
        """
        d_in, d_out = self.channels[layer], self.channels[layer + 1]
        first, total = sum(self.channels[:layer]), sum(self.channels)
        reading = self._reading()
        positions = reading[total : total + self.places.dimension + 2]
        return Layout(
            channels=reading[first : first + d_in],
            features=self.scales().unsqueeze(1) * positions,
            writing=2 * reading[first + d_in : first + d_in + d_out].mT,
            nowhere=reading[-1] / self.magnitude if self.nowhere else None,
        )

    def _reading(self) -> Tensor:
        """Half of each number less its negative, (numbers, E), float64."""
        one = torch.eye(self.count, dtype=torch.float64)
        pairs = torch.stack([one, -one], dim=-1).flatten(1) / 2
        return F.pad(pairs, (0, self.width - 2 * self.count))

    def positions(self, features: Tensor) -> Tensor:
        """(p, ‖p‖², 1) as tokens hold them, of every point."""
        return features / self.scales()

    def tokens(self, pixels: Tensor | None, positions: Tensor, batch: int) -> Tensor:
        """The tokens of points, (N, T, E).

        Args:
            pixels: (N, T, D_0), or None for none.
            positions: as tokens hold them, (T, d + 2).
            batch: N.
        """
        count = len(positions)
        if pixels is None:
            pixels = positions.new_zeros(batch, count, self.channels[0])
        free = positions.new_zeros(batch, count, sum(self.channels[1:]))
        numbers = torch.cat([pixels, free, positions.expand(batch, -1, -1)], dim=-1)
        signs = torch.stack([numbers, -numbers], dim=-1).flatten(-2)
        return F.pad(signs, (0, self.width - signs.shape[-1]))

    def token_of_no_pixel(self, like: Tensor) -> Tensor:
        """(N, 1, E): zeros, and the constant of its own."""
        token = like.new_zeros(len(like), 1, self.width)
        if self.nowhere:
            last = 2 * (self.count - 1)
            token[..., last], token[..., last + 1] = self.magnitude, -self.magnitude
        return token

    def read(self, tokens: Tensor, layer: int) -> Tensor:
        """The output of a layer: half of each number less its negative, (N, T, D)."""
        first = 2 * sum(self.channels[:layer])
        part = tokens[..., first : first + 2 * self.channels[layer]]
        return (part[..., 0::2] - part[..., 1::2]) / 2

    def set_norm(self, norm: nn.LayerNorm) -> None:
        """γ = M sqrt(2/E) and β = 0: the constant stays what it is."""
        with torch.no_grad():
            norm.weight.fill_(self.magnitude * math.sqrt(2 / self.width))
            if norm.bias is not None:
                norm.bias.zero_()


def set_relu(linear1: nn.Linear, linear2: nn.Linear, layout: Layout, *, relu: bool) -> None:
    """The feed-forward part adds relu(-y) to y, which is relu(y); or nothing."""
    count = layout.writing.shape[1] if relu else 0
    with torch.no_grad():
        for parameter in (*linear1.parameters(), *linear2.parameters()):
            parameter.zero_()
        linear1.weight[:count].copy_(-layout.writing.mT[:count] / 2)
        linear2.weight[:, :count].copy_(layout.writing[:, :count])
