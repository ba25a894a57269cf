"""What is timed: the convolution, our layer in each of its evaluations, and attention by others."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import attention_from_conv, lower
from constructions.lowering import Lowered

SHARPNESS, FLAT = 0.7, 1e-5
"""Of layers that are not saturated: with the first a neighbour has half the weight of the pixel
itself, with the second no weight is zero, however large the image."""

WEIGHTS = 2**30
"""Bytes: attention that holds all its weights stops where one copy of them is larger."""

Convolution = nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Case:
    """A convolution and an image.

    Args:
        size: of the image.
        channels: in and out.
        kernel: taps on each axis.
        dtype: a name in torch.
        depthwise: whether each channel is a group.
        device: a name in torch.
        batch: images.
    """

    size: tuple[int, ...]
    channels: int = 64
    kernel: int = 3
    dtype: str = "float32"
    depthwise: bool = False
    device: str = "cpu"
    batch: int = 1

    @property
    def tokens(self) -> int:
        """T."""
        return math.prod(self.size)

    @property
    def weights(self) -> int:
        """Bytes of all attention weights in float32."""
        taps = math.prod(self.kernel for _ in self.size)
        return 4 * taps * self.tokens**2

    def convolution(self) -> Convolution:
        """The same one every time, its output as large as its input."""
        torch.manual_seed(0)
        kind = (nn.Conv1d, nn.Conv2d)[len(self.size) - 1]
        groups = self.channels if self.depthwise else 1
        conv = kind(
            self.channels, self.channels, self.kernel, padding=self.kernel // 2, groups=groups
        )
        return conv.to(self.device, getattr(torch, self.dtype))

    def image(self) -> Tensor:
        """The same one every time."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, self.channels, *self.size, generator=generator)
        return x.to(self.device, getattr(torch, self.dtype))

    def smaller(self, side: int = 8) -> Case:
        """The same on a small image."""
        return Case(
            (side,) * len(self.size),
            self.channels,
            self.kernel,
            self.dtype,
            self.depthwise,
            self.device,
        )


# The convolution ----------------------------------------------------------------------------------


class PadThenConvolve(nn.Module):
    """`F.pad`, then the convolution without padding: what padding explicitly costs by itself."""

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        self.weight, self.bias, self.groups = conv.weight, conv.bias, conv.groups
        self.margins = (conv.kernel_size[0] // 2,) * (2 * (conv.weight.dim() - 2))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of the padded image."""
        convolution: Callable[..., Tensor] = (F.conv1d, F.conv2d)[x.dim() - 3]
        padded = F.pad(x, self.margins)
        return convolution(padded, self.weight, self.bias, groups=self.groups)


# Attention by others ------------------------------------------------------------------------------


class Textbook(nn.Module):
    """Multi-head attention with quadratic scores, each formula written down as it stands."""

    def __init__(self, conv: nn.Conv2d, sharpness: float) -> None:
        super().__init__()
        self.margin = conv.kernel_size[0] // 2
        taps = torch.arange(-self.margin, self.margin + 1.0, device=conv.weight.device)
        shifts = torch.cartesian_prod(taps, taps)
        v = sharpness * torch.cat([-torch.ones_like(shifts[:, :1]), 2 * shifts], -1)
        matrices = conv.weight.detach().flatten(2).permute(2, 1, 0)  # (heads, in, out)
        self.v = nn.Parameter(v, requires_grad=False)
        self.w_val = nn.Parameter(matrices.contiguous())
        self.b_out = nn.Parameter(conv.get_parameter("bias").detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The sum over heads of softmax(v^T r) X W_val."""
        n, _, height, width = x.shape
        y = (self.scores(x).softmax(-1) @ self.values(x)).sum(1) + self.b_out
        return y.mT.reshape(n, -1, height, width)

    def values(self, x: Tensor) -> Tensor:
        """X W_val of every key: (N, H, K, D_out)."""
        tokens = F.pad(x, (self.margin,) * 4).flatten(2).mT
        return tokens[:, None] @ self.w_val

    def scores(self, x: Tensor, heads: slice = slice(None)) -> Tensor:
        """v^T r, each head's at its own shift 0 in any format: (H, Q, K)."""
        m = self.margin
        rows, columns = (torch.arange(-m, size + m, device=x.device) for size in x.shape[2:])
        keys = torch.cartesian_prod(rows, columns).float()
        inner = slice(m, -m or None)
        queries = torch.cartesian_prod(rows[inner], columns[inner]).float()
        delta = keys - queries[:, None]
        r = torch.cat([delta.square().sum(-1, keepdim=True), delta], -1)
        scores = torch.einsum("hp,qkp->hqk", self.v[heads].float(), r)
        return (scores - scores.amax(-1, keepdim=True)).to(x.dtype)


class HeadByHead(Textbook):
    """The textbook's attention, one head after the other: less memory at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """The sum over heads of softmax(v^T r) X W_val."""
        n, _, height, width = x.shape
        tokens = F.pad(x, (self.margin,) * 4).flatten(2).mT
        y: Tensor = self.b_out
        for head, w_val in enumerate(self.w_val):
            weights = self.scores(x, slice(head, head + 1))[0].softmax(-1)
            y = y + weights @ (tokens @ w_val)
        return y.mT.reshape(n, -1, height, width)


class Stock(Textbook):
    """torch's fused attention, the position scores as its mask, made once for each size.

    Queries and keys are there for the content, which is zero, as is their product.
    """

    _mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The sum over heads of scaled_dot_product_attention."""
        n, _, height, width = x.shape
        if self._mask is None or self._mask.shape[1] != height * width:
            self._mask = self.scores(x)
        values = self.values(x)
        keys = torch.zeros_like(values)
        queries = keys[:, :, : height * width]
        seen = F.scaled_dot_product_attention(queries, keys, values, self._mask)
        return (seen.sum(1) + self.b_out).mT.reshape(n, -1, height, width)


class OnTokens(nn.Module):
    """A layer of tokens as one of images, with as many channels as it takes."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer, self.channels = layer, channels

    def forward(self, x: Tensor) -> Tensor:
        """The layer on (N, T, C)."""
        tokens: Tensor = self.layer(x[:, : self.channels].flatten(2).mT)
        return tokens.mT.reshape(len(x), -1, *x.shape[2:])


def gated(channels: int, heads: int, *, strength: float = 1.0) -> Any:
    """ConViT's layer (arXiv 2103.10697) as timm has it, freshly initialised; None without timm."""
    if importlib.util.find_spec("timm") is None:
        return None
    from tests.support.libraries import imported  # which helps timm past a torchvision for CUDA

    torch.manual_seed(0)
    layer = imported("timm.models.convit").GPSA(
        channels, num_heads=heads, locality_strength=strength
    )
    layer.local_init()
    return layer.eval()


def lowered_part(gpsa: Any) -> Lowered:
    """The positional part of a gated layer, gates included, by `lower`."""
    heads, width = gpsa.num_heads, gpsa.dim // gpsa.num_heads
    gates = torch.sigmoid(gpsa.gating_param.detach()).reshape(-1, 1, 1)
    value = gpsa.v.weight.detach().reshape(heads, width, gpsa.dim).mT
    output = gpsa.proj.weight.detach().T.reshape(heads, width, gpsa.dim)
    return Lowered.from_scores(
        gpsa.pos_proj.weight, gates * value, output, gpsa.proj.bias.detach().clone()
    )


class PositionalPart(nn.Module):
    """The positional part of a gated layer as the layer computes it, all weights in memory."""

    def __init__(self, gpsa: Any) -> None:
        super().__init__()
        self.gpsa = gpsa

    def weights(self, x: Tensor) -> Tensor:
        """Gate times softmax of the position scores, (1, heads, T, T)."""
        gpsa, tokens = self.gpsa, x.shape[1]
        relative = gpsa.rel_indices
        if relative.shape[1] != tokens or relative.dtype != x.dtype:
            gpsa.rel_indices = relative = gpsa.get_rel_indices(tokens)
        scores = gpsa.pos_proj(relative).permute(0, 3, 1, 2)
        gates = torch.sigmoid(gpsa.gating_param).view(1, -1, 1, 1)
        weights: Tensor = gates * scores.softmax(dim=-1)
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """These weights, times values, projected."""
        gpsa, (n, tokens, channels), weights = self.gpsa, x.shape, self.weights(x)
        values = gpsa.v(x).reshape(n, tokens, gpsa.num_heads, -1).transpose(1, 2)
        y: Tensor = gpsa.proj((weights @ values).transpose(1, 2).reshape(n, tokens, channels))
        return y


# All of them --------------------------------------------------------------------------------------

CONVOLUTION, PADDED = "conv2d", "pad, conv2d"
SATURATED, FINITE, BANDED = "saturated", "finite", "finite, lowered"
FULL = "finite, full range"
DENSE, FUSED, FLEX = "dense", "fused", "flex"
TEXTBOOK, BY_HEAD, STOCK, GATED = "textbook", "by head", "SDPA", "GPSA"

LINEAR = (CONVOLUTION, PADDED, SATURATED, FINITE, BANDED)
QUADRATIC = (DENSE, FUSED, FLEX, TEXTBOOK, BY_HEAD, STOCK, GATED)
FROZEN = (BANDED, FLEX)
"""Contenders that are not trained: they have no parameters, or on a CPU no backward pass."""


def fused(conv: nn.Conv2d) -> nn.Module:
    """Our layer by stock attention on features of positions."""
    return attention_from_conv(conv, boundary="padded", evaluation="fused")


def flex(conv: nn.Conv2d) -> nn.Module | None:
    """Our layer by FlexAttention, where there is a compiler for it."""
    if shutil.which("g++") is None and conv.weight.device.type == "cpu":
        return None
    layer = attention_from_conv(conv, boundary="padded", evaluation="flex")
    return layer.requires_grad_(False)


def gated_like(conv: nn.Conv2d) -> nn.Module | None:
    """ConViT's layer with a head for each tap, and as many of the channels as they divide."""
    heads = math.prod(conv.kernel_size)
    channels = max(conv.in_channels // heads, 1) * heads
    layer = gated(channels, heads) if channels <= conv.in_channels else None
    return None if layer is None else OnTokens(layer.to(conv.weight), channels)


def textbook(kind: type[Textbook]) -> Callable[[Any], nn.Module]:
    """A textbook's layer, as sharp as our own that holds all weights."""

    def make(conv: nn.Conv2d) -> nn.Module:
        dense = attention_from_conv(conv, boundary="padded", evaluation="dense")
        return kind(conv, dense.sharpness).to(conv.weight.dtype)

    return make


MAKERS: Mapping[str, Callable[[Any], nn.Module | None]] = {
    CONVOLUTION: lambda conv: conv,
    PADDED: PadThenConvolve,
    SATURATED: attention_from_conv,
    FINITE: lambda conv: attention_from_conv(conv, sharpness=SHARPNESS),
    BANDED: lambda conv: lower(attention_from_conv(conv, sharpness=SHARPNESS)),
    FULL: lambda conv: attention_from_conv(conv, sharpness=FLAT),
    DENSE: lambda conv: attention_from_conv(conv, boundary="padded", evaluation="dense"),
    FUSED: fused,
    FLEX: flex,
    TEXTBOOK: textbook(Textbook),
    BY_HEAD: textbook(HeadByHead),
    STOCK: textbook(Stock),
    GATED: gated_like,
}
EXACT = (PADDED, SATURATED, DENSE, FUSED, FLEX, TEXTBOOK, BY_HEAD, STOCK)
"""Contenders that compute the convolution."""


def fits(name: str, case: Case) -> bool:
    """Whether a contender can be asked for a case: its weights are not too large to be held."""
    if name not in QUADRATIC:
        # On one axis the factor of a soft padding has as many entries as attention has weights.
        return name != FINITE or len(case.size) > 1 or 8 * case.tokens**2 <= WEIGHTS
    return len(case.size) == 2 and not case.depthwise and case.weights <= WEIGHTS


def modules(names: tuple[str, ...], case: Case) -> dict[str, nn.Module]:
    """The contenders of a case, without those that do not fit or do not exist here."""
    made = {name: MAKERS[name](case.convolution()) for name in names if fits(name, case)}
    return {name: module for name, module in made.items() if module is not None}


def of_rank(conv: Convolution, rank: int) -> Convolution:
    """The convolution, its taps of a rank, and positive in one direction."""
    taps = math.prod(conv.kernel_size)
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(taps, rank, generator=generator)
    left[:, 0] = left[:, 0].abs() + 3
    numbers = torch.randn(conv.weight.numel() // taps, rank, generator=generator) @ left.T
    with torch.no_grad():
        conv.weight.copy_(numbers.reshape(conv.weight.shape))
    return conv
