"""Convolutions and ReLUs on torch's Transformer layers, unmodified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.sources import AnyConvolution
from constructions.stock.errors import error_of_blocks
from constructions.stock.multihead import check_format
from constructions.stock.pairs import Pairs, set_relu
from constructions.stock.plan import Plan, set_attention
from constructions.stock.positions import Places, check_reach, rounded_reach
from constructions.stock.stock import Stock

MAGNITUDES = {torch.float32: 2.0**15, torch.float64: 2.0**30}
"""M: so large that LayerNorm changes a token by less than it rounds, so small that means cancel."""


def encoder_layer(
    conv: AnyConvolution,
    spatial_shape: Sequence[int] | int,
    *,
    relu: bool = True,
    norm_first: bool = False,
    magnitude: float | None = None,
) -> Stock:
    """An unmodified `torch.nn.TransformerEncoderLayer` that computes a convolution and its ReLU.

    Residual connections, LayerNorm and the feed-forward part are there as they are. Theorem:
    `a_transformer_block_is_convolution_and_relu`, whose bound for an image is `.bound(x)`. A token
    holds every number with both signs: the channels of its pixel, where it stands, a large
    constant, and room for the outputs. Zeros beyond the edge are a token of no pixel, appended.

    Args:
        conv: an `nn.Conv1d/2d/3d` in float32 or float64 whose outputs stand on pixels: without
            padding, or of zeros and no more outputs than pixels; left as it is.
        spatial_shape: of its images, in pixels.
        relu: whether the ReLU is computed too, by the feed-forward part, which is zero otherwise.
        norm_first: as the module takes it.
        magnitude: M, the constant, a power of two; None for one that serves pixels of moderate
            size.

    Returns:
        The module with its adapter, called as the convolution is.

    Raises:
        TypeError: conv is not a convolution of torch's own.
        ValueError: a dtype, a border, a lattice or a size that tokens do not carry.
    """
    blocks = Blocks.of([(conv, relu)], spatial_shape, magnitude)
    layer = blocks.layer(norm_first=norm_first)
    blocks.set_block(layer, 0)
    return _Encoder(layer, blocks)


def encoder(
    network: nn.Sequential,
    spatial_shape: Sequence[int] | int,
    *,
    norm_first: bool = True,
    magnitude: float | None = None,
) -> Stock:
    """An unmodified `torch.nn.TransformerEncoder` that computes a small CNN, a layer for a layer.

    As `encoder_layer`, once for each convolution.

    Args:
        network: an `nn.Sequential` of convolutions, each with an `nn.ReLU` behind it or not.
        spatial_shape: of its images, in pixels.
        norm_first: as the module takes it.
        magnitude: as `encoder_layer` takes it.

    Returns:
        The module with its adapter, called as the network is.

    Raises:
        TypeError: the network holds something else.
        ValueError: as `encoder_layer`; or a convolution behind one without padding is padded.
    """
    blocks = Blocks.of(_convolutions(network), spatial_shape, magnitude)
    layer = blocks.layer(norm_first=norm_first)
    module = nn.TransformerEncoder(layer, len(blocks.plans), enable_nested_tensor=False)
    for number, block in enumerate(module.layers):
        blocks.set_block(block, number)
    return _Encoder(module, blocks)


def decoder_layer(
    conv: AnyConvolution,
    spatial_shape: Sequence[int] | int,
    *,
    relu: bool = True,
    norm_first: bool = False,
    magnitude: float | None = None,
    output_size: Sequence[int] | None = None,
) -> Stock:
    """An unmodified `torch.nn.TransformerDecoderLayer`: a convolution between two lattices.

    As `encoder_layer`, by the attention of the decoder to the encoder: the memory are the pixels,
    the targets stand where the outputs do. Strided and transposed convolutions are of this kind.
    Self-attention among the targets adds zero.

    Args:
        conv: any `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d` in float32 or float64 with a
            border of zeros, or none.
        spatial_shape: of its images, in pixels.
        relu: as `encoder_layer` takes it.
        norm_first: likewise.
        magnitude: likewise.
        output_size: of a transposed convolution, as torch takes it.

    Returns:
        The module with its adapter, called as the convolution is.

    Raises:
        TypeError: conv is not a convolution of torch's own.
        ValueError: as `encoder_layer`, but for the lattice.
    """
    blocks = Blocks.of([(conv, relu)], spatial_shape, magnitude, output_size, crosses=True)
    layer = nn.TransformerDecoderLayer(
        blocks.pairs.width,
        blocks.heads,
        blocks.hidden,
        dropout=0.0,
        batch_first=True,
        norm_first=norm_first,
        device=blocks.plans[0].device,
        dtype=blocks.plans[0].dtype,
    )
    with torch.no_grad():
        for parameter in layer.self_attn.parameters():
            parameter.zero_()
    blocks.set_part(layer.multihead_attn, layer, 0)
    return _Decoder(layer, blocks)


@dataclass(frozen=True)
class Blocks:
    """Convolutions, one for each block, and the tokens that they share.

    Args:
        plans: of the convolutions, on the lattice of the tokens.
        relus: whether a ReLU is behind each.
        pairs: what tokens hold.
        heads: H of every block.
        shapes: of the image, and of the output of each block.
    """

    plans: tuple[Plan, ...]
    relus: tuple[bool, ...]
    pairs: Pairs
    heads: int
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        layers: Sequence[tuple[AnyConvolution, bool]],
        spatial_shape: Sequence[int] | int,
        magnitude: float | None,
        output_size: Sequence[int] | None = None,
        *,
        crosses: bool = False,
    ) -> Blocks:
        """Check convolutions and the size of their images, and read them."""
        plans: list[Plan] = []
        shape = spatial_shape
        for conv, _ in layers:
            plan = Plan.of(conv, shape, output_size=output_size)
            if plans:
                _check_chain(plans[-1], plan)
            pixels = plans[0].places.keys if plans else plan.places.keys
            _check_block(conv, plan, pixels, plans, crosses=crosses)
            places = Places(pixels, plan.places.queries, plan.heads.shifts)
            plans.append(replace(plan, places=places, sharpness=2 * plan.sharpness))
            check_reach(places, plan.dtype, rounded_reach(plan.dtype, 6 * places.dimension + 60), 1)
            shape = places.queries.shape
        first = plans[0]
        has_sink = any(plan.has_sink for plan in plans)
        nowhere = has_sink and not crosses
        heads = max(len(plan.heads) + (nowhere and plan.bias is not None) for plan in plans)
        channels = tuple(plan.heads.dimensions[0] for plan in plans)
        channels += (plans[-1].heads.dimensions[1],)
        pairs = Pairs(channels, first.places, nowhere, _magnitude(magnitude, first.dtype), 0)
        values = max(plan.factors()[0].shape[2] for plan in plans)
        least = max(first.places.dimension + 2 + nowhere, values, -(-2 * pairs.count // heads))
        # Beside a token of no pixel every target stands above it, whether or not it can be missed.
        return cls(
            tuple(replace(plan, has_sink=has_sink) for plan in plans),
            tuple(relu for _, relu in layers),
            replace(pairs, width=heads * least),
            heads,
            (first.places.keys.shape, *(plan.places.queries.shape for plan in plans)),
        )

    @property
    def hidden(self) -> int:
        """Hidden units of the feed-forward parts."""
        return max(self.pairs.channels[1:])

    def layer(self, *, norm_first: bool) -> nn.TransformerEncoderLayer:
        """A layer of this size, its parameters not set."""
        return nn.TransformerEncoderLayer(
            self.pairs.width,
            self.heads,
            self.hidden,
            dropout=0.0,
            batch_first=True,
            norm_first=norm_first,
            device=self.plans[0].device,
            dtype=self.plans[0].dtype,
        )

    def set_block(self, layer: nn.Module, number: int) -> None:
        """Set all parameters of an encoder layer."""
        assert isinstance(layer, nn.TransformerEncoderLayer)
        self.set_part(layer.self_attn, layer, number)

    def set_part(
        self,
        attention: nn.MultiheadAttention,
        layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
        number: int,
    ) -> None:
        """Set one attention of a layer, its feed-forward part and its norms."""
        layout = self.pairs.layout(number)
        set_attention(attention, self.plans[number], layout)
        set_relu(layer.linear1, layer.linear2, layout, relu=self.relus[number])
        for norm in layer.children():
            if isinstance(norm, nn.LayerNorm):
                self.pairs.set_norm(norm)


def _convolutions(network: nn.Sequential) -> list[tuple[AnyConvolution, bool]]:
    """The convolutions of a network, each with whether a ReLU is behind it."""
    if not isinstance(network, nn.Sequential):
        raise TypeError(
            f"network is a {type(network).__name__}; accepted: an nn.Sequential of convolutions "
            "and nn.ReLU"
        )
    found: list[tuple[AnyConvolution, bool]] = []
    for name, module in network.named_children():
        if type(module) is nn.ReLU and found and not found[-1][1]:
            found[-1] = (found[-1][0], True)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found.append((module, False))
        else:
            raise TypeError(
                f"network.{name} is a {type(module).__name__}; accepted: an nn.Conv1d, nn.Conv2d "
                "or nn.Conv3d, or an nn.ReLU behind one"
            )
    if not found:
        raise TypeError("network holds no convolution; accepted: one or more")
    return found


def _magnitude(given: float | None, dtype: torch.dtype) -> float:
    """M, checked."""
    magnitude = MAGNITUDES[dtype] if given is None else float(given)
    exponent = torch.tensor(magnitude, dtype=torch.float64).frexp()
    limit = unit_roundoff(dtype) ** -1
    if exponent.mantissa != 0.5 or not 1 <= magnitude <= limit:
        raise ValueError(
            f"magnitude is {given}; accepted: a power of two from 1 to {limit:.6g}, or None"
        )
    return magnitude


def _check_block(
    conv: AnyConvolution, plan: Plan, pixels: Lattice, before: Sequence[Plan], *, crosses: bool
) -> None:
    """Raise a ValueError where the lattices of a block do not fit those of the tokens."""
    queries = plan.places.queries
    if plan.stencil.geometry.can_miss and not plan.has_sink:
        raise ValueError(
            f"conv is {conv}; accepted: a border of zeros, or none: pad the image before the block"
        )
    if crosses:
        return
    inside = all(a <= b for a, b in zip(queries.last, pixels.last, strict=True))
    if not inside or plan.places.keys.spacing != pixels.spacing:
        raise ValueError(
            f"conv is {conv}, whose outputs do not all stand on pixels; accepted: one of no more "
            "outputs than pixels, in an encoder; stock.decoder_layer takes the others"
        )
    if not before:
        return
    last = before[-1].places.queries
    if last.spacing != pixels.spacing or (plan.has_sink and last.shape != pixels.shape):
        raise ValueError(
            f"conv is {conv} behind one whose outputs stand on {last}; accepted: behind stride 1, "
            "and padded only where all layers before it keep the size"
        )


def _check_chain(before: Plan, plan: Plan) -> None:
    """Raise a ValueError unless a convolution takes what the one before it returns."""
    given, taken = before.heads.dimensions[1], plan.heads.dimensions[0]
    if given != taken:
        raise ValueError(
            f"network has a convolution of {taken} channels behind one that returns {given}; "
            "accepted: as many"
        )
    if (before.dtype, before.device) != (plan.dtype, plan.device):
        raise ValueError(
            f"network has {plan.dtype} on {plan.device} behind {before.dtype} on {before.device}; "
            "accepted: one dtype and one device"
        )


class _Blocks(Stock):
    """A module of blocks on tokens of pairs."""

    keys: Tensor
    queries: Tensor

    def __init__(self, module: nn.Module, blocks: Blocks) -> None:
        super().__init__(module, blocks.shapes[0], blocks.pairs.channels[0])
        self.blocks = blocks
        first, last = blocks.plans[0], blocks.plans[-1]
        self.dtype = first.dtype
        self.output = last.places.queries
        for name, lattice in (("keys", first.places.keys), ("queries", self.output)):
            numbers = blocks.pairs.positions(first.places.features(lattice))
            self.register_buffer(name, numbers.to(first.device, first.dtype), persistent=False)

    def bound(self, x: Tensor) -> Tensor:
        """What the output for an image may differ by from the convolutions' over the reals.

        Theorem: `a_transformer_block_is_convolution_and_relu`; float64, of the output's shape, inf
        where the image is too large for the module's constant.
        """
        check_format(x, self.dtype)
        batched = x.dim() > len(self.spatial_shape) + 1
        norms = [m for m in self.module.modules() if isinstance(m, nn.LayerNorm)]
        image = (x if batched else x.unsqueeze(0)).detach().cpu().double()
        blocks = self.blocks
        found = error_of_blocks(blocks.plans, blocks.relus, blocks.pairs, image, norms)
        return found if batched else found.squeeze(0)

    def _image(self, tokens: Tensor) -> Tensor:
        """The outputs of the last block, (N, D_out, T)."""
        return self.blocks.pairs.read(tokens, len(self.blocks.plans)).mT


class _Encoder(_Blocks):
    """Encoder layers: outputs stand on pixels."""

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """The tokens of the pixels, and one of no pixel behind them where a border needs it."""
        check_format(x, self.dtype)
        pairs = self.blocks.pairs
        tokens = pairs.tokens(x.flatten(2).mT, self.keys, len(x))
        if pairs.nowhere:
            tokens = torch.cat([tokens, pairs.token_of_no_pixel(tokens)], dim=1)
        return (tokens,)

    def image(self, y: object) -> Tensor:
        """The pixels that are outputs."""
        assert isinstance(y, Tensor)
        count = len(self.keys)
        flat = self._image(y[:, :count])
        image = flat.reshape(*flat.shape[:2], *self.spatial_shape)
        for axis, (size, step) in enumerate(
            zip(self.output.shape, self.output.spacing, strict=True)
        ):
            chosen = torch.arange(size, device=image.device) * step
            image = image.index_select(2 + axis, chosen)
        return image


class _Decoder(_Blocks):
    """A decoder layer: targets are the outputs, the memory are the pixels."""

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """The targets, and the memory, with a token of zeros where a border needs it."""
        check_format(x, self.dtype)
        pairs = self.blocks.pairs
        memory = pairs.tokens(x.flatten(2).mT, self.keys, len(x))
        if self.blocks.plans[0].has_sink:
            memory = torch.cat([memory, pairs.token_of_no_pixel(memory)], dim=1)
        return pairs.tokens(None, self.queries, len(x)), memory

    def image(self, y: object) -> Tensor:
        """The outputs of the targets."""
        assert isinstance(y, Tensor)
        flat = self._image(y)
        return flat.reshape(*flat.shape[:2], *self.output.shape)
