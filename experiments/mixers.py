"""Mixers of tokens: a convolution, and attention by each of the paper's relative encodings.

All attention is that of arXiv 1911.03584 as its authors trained it: no W_val, and one linear map of
what all heads see. Scores are those of eq. 8, its terms one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

HEADS = 9
KEY_WIDTH = 8
"""D_k of the content terms."""

TERMS = ("query-key", "query-position", "key")
"""What content may add to positions: the terms of eq. 8 beside v^T Ŵ_key^T r_δ."""


class Convolution(nn.Module):
    """A 3 x 3 convolution on the grid of tokens, the edge replicated."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        """From (N, side², C) to the same."""
        image = x.transpose(1, 2).reshape(*x.shape[::2], self.side, self.side)
        y: Tensor = self.conv(image)
        return y.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention over a square of tokens; a subclass scores displacements.

    Args:
        width: channels of a token.
        side: tokens on each axis.
        terms: of `TERMS`.
    """

    def __init__(self, width: int, side: int, terms: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.side, self.terms = side, terms
        axis = torch.arange(side)
        places = torch.cartesian_prod(axis, axis)
        self.displacements: Tensor
        self.register_buffer("displacements", places[None] - places[:, None], persistent=False)
        self.mix = nn.Linear(HEADS * width, width)

        def content(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / math.sqrt(width))

        if "query-key" in terms or "query-position" in terms:
            self.query = content(HEADS, width, KEY_WIDTH)
        if "query-key" in terms or "key" in terms:
            self.key = content(HEADS, width, KEY_WIDTH)
        if "query-position" in terms:
            self.places = nn.Parameter(torch.randn(HEADS, 2, 2 * side - 1, KEY_WIDTH))
        if "key" in terms:
            self.key_bias = nn.Parameter(torch.randn(HEADS, KEY_WIDTH))

    def positions(self) -> Tensor:
        """Scores of the displacements, (H, T, T)."""
        raise NotImplementedError

    def weights(self, x: Tensor) -> Tensor:
        """(H, T, T), or (N, H, T, T) where content counts."""
        scores = self.positions()
        tokens = x.unsqueeze(1)
        if "query-key" in self.terms or "key" in self.terms:
            key = tokens @ self.key
        if "query-key" in self.terms:
            scores = scores + tokens @ self.query @ key.transpose(-1, -2) / math.sqrt(KEY_WIDTH)
        if "key" in self.terms:
            bias = key @ self.key_bias.unsqueeze(-1)
            scores = scores + bias.transpose(-1, -2) / math.sqrt(KEY_WIDTH)
        if "query-position" in self.terms:
            steps = self.displacements + self.side - 1
            rows, columns = (self.places[:, a, steps[..., a]] for a in (0, 1))  # (H, T, T, D_k)
            aimed = torch.einsum("nhqd,hqkd->nhqk", tokens @ self.query, rows + columns)
            scores = scores + aimed / math.sqrt(KEY_WIDTH)
        return scores.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, side², C) to the same."""
        seen = self.weights(x) @ x.unsqueeze(1)  # (N, H, T, C)
        mixed: Tensor = self.mix(seen.transpose(1, 2).flatten(2))
        return mixed

    def matrices(self) -> Tensor:
        """V_h of each head, (H, C, C): what it does with what it sees."""
        stacked: Tensor = self.mix.weight.detach()
        return stacked.reshape(len(stacked), HEADS, -1).permute(1, 2, 0)


class Quadratic(Attention):
    """Scores -α ‖δ - Δ‖², with a centre and a sharpness of each head's own (eq. 9).

    Args:
        width: channels of a token.
        side: tokens on each axis.
        spread: standard deviation of the random centres.
        sharpness: α to start from.
    """

    def __init__(self, width: int, side: int, spread: float = 1.0, sharpness: float = 1.0) -> None:
        super().__init__(width, side)
        self.centres = nn.Parameter(spread * torch.randn(HEADS, 2))
        self.log_sharpness = nn.Parameter(torch.full((HEADS,), math.log(sharpness)))

    def positions(self) -> Tensor:
        """See `Attention.positions`."""
        away = self.displacements - self.centres[:, None, None]
        return -self.log_sharpness.exp()[:, None, None] * away.square().sum(-1)

    def start_as(self, convolution: Convolution, sharpness: float) -> None:
        """Take a convolution's offsets and matrices, at a sharpness."""
        axis = torch.arange(-1.0, 2.0)
        kernel = convolution.conv.weight.detach().flatten(2)  # (out, in, taps)
        bias = convolution.conv.bias
        assert bias is not None
        with torch.no_grad():
            self.centres.copy_(torch.cartesian_prod(axis, axis))
            self.log_sharpness.fill_(math.log(sharpness))
            self.mix.weight.copy_(kernel.transpose(1, 2).flatten(1))
            self.mix.bias.copy_(bias)


class Generalised(Attention):
    """Scores -½ ‖S (δ - Δ)‖², with a matrix S of each head's own (appendix of the paper)."""

    def __init__(self, width: int, side: int, spread: float = 1.0) -> None:
        super().__init__(width, side)
        self.centres = nn.Parameter(spread * torch.randn(HEADS, 2))
        self.precision_root = nn.Parameter(
            math.sqrt(2) * torch.eye(2) + 0.1 * torch.randn(HEADS, 2, 2)
        )

    def positions(self) -> Tensor:
        """See `Attention.positions`."""
        away = self.displacements - self.centres[:, None, None]
        return -0.5 * torch.einsum("hij,hqkj->hqki", self.precision_root, away).square().sum(-1)


class Learned(Attention):
    """Scores from learned rows and columns of displacements (section 4 of the paper)."""

    def __init__(self, width: int, side: int, terms: tuple[str, ...] = ()) -> None:
        super().__init__(width, side, terms)
        self.table = nn.Parameter(torch.randn(HEADS, 2, 2 * side - 1))

    def positions(self) -> Tensor:
        """See `Attention.positions`."""
        steps = self.displacements + self.side - 1
        return self.table[:, 0, steps[..., 0]] + self.table[:, 1, steps[..., 1]]


Maker = Callable[[int, int], nn.Module]

ARMS: dict[str, Maker] = {
    "convolution": Convolution,
    "quadratic": Quadratic,
    "generalised quadratic": Generalised,
    "learned": Learned,
    "learned + query and key": lambda c, n: Learned(c, n, ("query-key",)),
    "learned + query and position": lambda c, n: Learned(c, n, ("query-position",)),
    "learned + key": lambda c, n: Learned(c, n, ("key",)),
    "learned + all three": lambda c, n: Learned(c, n, TERMS),
}
"""What the paper compares, and its content terms one at a time."""
