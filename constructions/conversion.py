"""From convolutions to attention: the construction, for one layer and for a whole network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from constructions.attention import MultiHeadSelfAttention
from constructions.encodings import ENCODINGS, Encoding
from constructions.evaluation import EVALUATIONS
from constructions.lattice import Lattice
from constructions.normalisers import NORMALISERS, Normaliser
from constructions.stencil import CONVOLUTIONS, AnyConvolution, Stencil, check_convolution

BOUNDARIES = {"auto": "padded", "padded": "padded"}

Part = TypeVar("Part")
Model = TypeVar("Model", bound=nn.Module)


def attention_from_conv(
    conv: AnyConvolution,
    *,
    encoding: str | Encoding = "quadratic",
    normaliser: str | Normaliser = "softmax",
    sharpness: float | None = None,
    boundary: str = "auto",
    evaluation: str = "auto",
) -> MultiHeadSelfAttention:
    """Build the attention layer that computes a given convolution, one head for each tap.

    Head h attends to the key at (query + offset of tap h) and applies that tap's matrix:
    W_val^h W_out^h = W_h, one of the two factors the identity (arXiv 1911.03584, Theorem 1).
    Theorem: `attention_expresses_convolution`.

    Args:
        conv: any `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d`; left as it is.
        encoding: "quadratic", or an object with `encode` and `gap`.
        normaliser: "softmax", or an object that is called on scores and has `one_hot_gap`.
        sharpness: the gap in score between a head's shift and any other displacement, for the
            quadratic encoding the paper's alpha. None for the gap from which the weights are
            exactly one-hot in the layer's dtype, found anew whenever that dtype changes.
        boundary: "padded", explicit keys beyond the edge; or "auto".
        evaluation: "dense"; or "auto".

    Returns:
        The layer, of the convolution's dtype, device, training flag and requires_grad. Content and
        per-head positional parameters are frozen.

    Raises:
        TypeError: conv is not a convolution of torch's own, or is hooked, parametrised, lazy or
            complex; an argument has the wrong type.
        ValueError: an unsupported dtype, an unknown name, a sharpness that is not positive and
            finite, or no sharpness where the normaliser is never one-hot.
    """
    check_convolution(conv)
    encoder = _chosen("encoding", encoding, ENCODINGS, Encoding)
    normalise = _chosen("normaliser", normaliser, NORMALISERS, Normaliser)
    _chosen("boundary", boundary, BOUNDARIES)
    evaluate = _chosen("evaluation", evaluation, {"auto": EVALUATIONS["dense"], **EVALUATIONS})
    _check_sharpness(sharpness)
    if sharpness is None and not math.isfinite(normalise.one_hot_gap(conv.weight.dtype)):
        raise ValueError(
            f"sharpness is None; accepted: a positive number, since {normalise} is never one-hot"
        )

    stencil = Stencil.from_conv(conv)
    heads, groups, d_in, d_out = stencil.matrices.shape
    head_dim = min(d_in, d_out)
    # Any grid tells the dimension of the encoding.
    shifts = stencil.offsets.to(torch.float32)
    grid = Lattice.box(stencil.geometry.kernel_size)
    encoding_dim = encoder.encode(shifts, shifts, grid)[0].shape[-1]
    layer = MultiHeadSelfAttention(
        geometry=stencil.geometry,
        border=stencil.border,
        encoding=encoder,
        normaliser=normalise,
        evaluation=evaluate,
        num_heads=heads,
        in_channels=stencil.in_channels,
        out_channels=stencil.out_channels,
        groups=groups,
        head_dim=head_dim,
        encoding_dim=encoding_dim,
        sharpness=sharpness,
        bias=stencil.bias is not None,
        dtype=conv.weight.dtype,
        device=conv.weight.device,
    )
    identity = torch.eye(head_dim).expand(heads, groups, head_dim, head_dim)
    with torch.no_grad():
        layer.positional_shift.copy_(stencil.offsets)
        layer.positional_key.copy_(torch.eye(encoding_dim))
        layer.value.copy_(stencil.matrices if d_out <= d_in else identity)
        layer.output.copy_(identity if d_out <= d_in else stencil.matrices)
        if layer.bias is not None and stencil.bias is not None:
            layer.bias.copy_(stencil.bias)

    for name in (*layer.content, "positional_key", "positional_shift"):
        getattr(layer, name).requires_grad_(False)
    for name in ("value", "output", "positional_sharpness"):
        if (parameter := getattr(layer, name)) is not None:
            parameter.requires_grad_(conv.weight.requires_grad)
    if layer.bias is not None and conv.bias is not None:
        layer.bias.requires_grad_(conv.bias.requires_grad)
    return layer.train(conv.training)


def convert(model: Model, **options: Any) -> Model | MultiHeadSelfAttention:
    """Copy a network and replace every convolution in the copy by attention.

    Args:
        model: any module, a convolution itself included; left as it is. A convolution used in two
            places becomes one layer used in two places, a weight shared by two convolutions one
            value and output parameter shared by two layers.
        options: as `attention_from_conv` takes them, for every convolution.

    Returns:
        The copy; the attention layer if the model is itself a convolution.

    Raises:
        TypeError: model is not a module; or a convolution has a forward of its own, a hook or a
            parametrisation, is lazy or complex, or shares its weight with one of another kind. The
            message names its path.
        ValueError: as `attention_from_conv`, with the path.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")
    memo: dict[int, Any] = {}
    owners: dict[int, tuple[str, AnyConvolution]] = {}
    biases: dict[int, MultiHeadSelfAttention] = {}
    for path, module in model.named_modules():
        if not isinstance(module, CONVOLUTIONS):
            continue
        name = path or type(module).__name__
        try:
            layer = attention_from_conv(module, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        memo[id(module)] = layer
        if module.bias is not None:
            layer.bias = biases.setdefault(id(module.bias), layer).bias
        first_name, first = owners.setdefault(id(module.weight), (name, module))
        if first is not module:
            _share_matrices(memo[id(first)], layer, first_name, name)
    # deepcopy takes what the memo holds for the copy, wherever a convolution is referred to.
    return copy.deepcopy(model, memo)


def _share_matrices(
    first: MultiHeadSelfAttention, second: MultiHeadSelfAttention, first_name: str, name: str
) -> None:
    same_order = first.geometry.transposed == second.geometry.transposed
    if not same_order or first.value.shape != second.value.shape:
        raise TypeError(
            f"{name}: shares its weight with {first_name}, a convolution of another kind; "
            "accepted: a weight of its own, or one shared by convolutions of one kind and groups"
        )
    second.value, second.output = first.value, first.output


def _check_sharpness(sharpness: float | None) -> None:
    if sharpness is None:
        return
    if isinstance(sharpness, bool | Tensor) or not isinstance(sharpness, int | float):
        raise TypeError(f"sharpness is a {type(sharpness).__name__}; accepted: a number or None")
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError(f"sharpness is {sharpness}; accepted: a positive, finite number or None")


def _chosen(
    argument: str, given: Any, named: Mapping[str, Part], protocol: type[Part] | None = None
) -> Part:
    """The part that a name stands for, or the given object itself if it has the protocol."""
    accepted = ", ".join(map(repr, named))
    if protocol is not None:
        accepted += f" or an object with the methods of {protocol.__name__}"
    if isinstance(given, str):
        if given in named:
            return named[given]
        raise ValueError(f"{argument} is {given!r}; accepted: {accepted}")
    if protocol is not None and isinstance(given, protocol) and not isinstance(given, type):
        return given
    raise TypeError(f"{argument} is {given!r}; accepted: {accepted}")
