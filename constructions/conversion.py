"""From convolutions to attention: the construction, for one layer and for a whole network."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from constructions.encodings import (
    ENCODINGS,
    IMPOSSIBLE,
    Encoding,
    Mixing,
    Window,
)
from constructions.evaluation import AUTO, EVALUATIONS
from constructions.geometry.lattice import Lattice
from constructions.geometry.view import BOUNDARIES, Boundary, natural_encoding
from constructions.geometry.window import WindowGeometry
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.normalisers import (
    IMPOSSIBLE_NORMALISERS,
    NORMALISERS,
    Normaliser,
    Softmax,
)
from constructions.sources import POOLINGS, SOURCES, AnyConvolution, AnySource, Stencil, stencil_of

Part = TypeVar("Part")
Model = TypeVar("Model", bound=nn.Module)


def attention_from_conv(
    conv: AnySource,
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
    Theorem: `attention_expresses_convolution`. An average pooling becomes one uniform head over
    its window.

    Args:
        conv: any `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d`, or `nn.AvgPool1d/2d/3d`; left as
            it is. A pooling has no dtype: its layer is float32 until it is moved.
        encoding: a name of `ENCODINGS`, such as "quadratic", "gaussian", "circle", "rotary" or
            "scalar" (docs/encodings.md), or an object with `encode` and `gap`.
        normaliser: a name of `NORMALISERS`, such as "softmax", "sparsemax" or "relu", or an object
            that is called on scores and has `one_hot_gap`.
        sharpness: the gap in score between a head's shift and any other displacement, for the
            quadratic encoding the paper's alpha. None for the gap from which the weights are
            exactly one-hot in the layer's dtype, found anew whenever that dtype changes.
        boundary: "natural", the image is not padded: the heads themselves replicate the edge
            (quadratic), see zeros (a sink) or go round (periodic); "padded", explicit keys beyond
            the edge; or "auto", natural where the encoding and the padding mode have it.
        evaluation: "dense", every weight; "factored", soft padding and then the convolution;
            "fused", torch's `scaled_dot_product_attention`, where scores are exact in it; "flex",
            its FlexAttention; or "auto", the first of factored, fused and dense that applies.

    Returns:
        The layer, of the convolution's dtype, device, training flag and requires_grad. Content and
        per-head positional parameters are frozen.

    Raises:
        TypeError: conv is not a convolution of torch's own, or is hooked, parametrised, lazy or
            complex; an argument has the wrong type.
        ValueError: an unsupported dtype, an unknown name, an encoding or a normaliser that cannot
            express the convolution (with the theorem that says so), a sharpness that is not
            positive and finite, no sharpness where the normaliser is never one-hot, or an explicit
            boundary or evaluation that does not apply.
    """
    pooling = isinstance(conv, POOLINGS)
    stencil = stencil_of(conv)
    dtype = stencil.matrices.dtype
    encoder = _chosen("encoding", encoding, ENCODINGS, Encoding, IMPOSSIBLE)
    normalise = _chosen("normaliser", normaliser, NORMALISERS, Normaliser, IMPOSSIBLE_NORMALISERS)
    chosen_boundary = _chosen("boundary", boundary, {"auto": None, **BOUNDARIES})
    every_way = {"auto": AUTO, **{n: (e,) for n, e in EVALUATIONS.items()}}
    ways = _chosen("evaluation", evaluation, every_way)
    _check_sharpness(sharpness)
    if isinstance(stencil.geometry, WindowGeometry):
        encoder, around = _of_window(stencil.geometry, encoding, normalise, chosen_boundary)
        sharpness = None  # scores of 0 and -inf are the same at any
    else:
        encoder, around = _at_the_border(encoder, normalise, chosen_boundary, stencil)
    if isinstance(encoder, Mixing):
        _check_mixing(encoder, normalise, sharpness)
    elif sharpness is not None:
        normalise = getattr(normalise, "at", lambda _: normalise)(float(sharpness))
    if sharpness is None and not math.isfinite(normalise.one_hot_gap(dtype)):
        raise ValueError(
            f"sharpness is None; accepted: a positive number, since {normalise} is never one-hot"
        )

    matrices, shifts = stencil.matrices, stencil.geometry.offsets().to(torch.float64)
    if isinstance(encoder, Mixing):
        where = "meta" if matrices.is_meta else "cpu"
        taps = encoder.coefficients(shifts).to(where)
        wide = torch.einsum("ht,tgio->hgio", taps, matrices.to(where, torch.float64))
        matrices = wide.to(matrices)
        shifts = encoder.heads(shifts)
    heads, groups, d_in, d_out = matrices.shape
    head_dim = min(d_in, d_out)
    # Any grid tells the dimension of the encoding, and most whether it can select the shifts.
    grid = Lattice.box(stencil.geometry.kernel_size)
    encoding_dim = encoder.encode(shifts, shifts, grid)[0].shape[-1]
    encoder.gap(shifts, grid)
    layer = MultiHeadSelfAttention(
        geometry=stencil.geometry,
        border=stencil.border,
        boundary=around,
        encoding=encoder,
        normaliser=normalise,
        evaluations=ways,
        num_heads=heads,
        in_channels=None if pooling else stencil.in_channels,
        out_channels=None if pooling else stencil.out_channels,
        groups=groups,
        head_dim=head_dim,
        encoding_dim=encoding_dim,
        sharpness=sharpness,
        bias=stencil.bias is not None,
        dtype=dtype,
        device=stencil.matrices.device,
    )
    identity = torch.eye(head_dim).expand(heads, groups, head_dim, head_dim)
    with torch.no_grad():
        layer.positional_shift.copy_(shifts)
        layer.positional_key.copy_(torch.eye(encoding_dim))
        value, output = layer.head_matrices()
        value.copy_(matrices if d_out <= d_in else identity)
        output.copy_(identity if d_out <= d_in else matrices)
        if layer.bias is not None and stencil.bias is not None:
            layer.bias.copy_(stencil.bias)

    trained = {name: p.requires_grad for name, p in conv.named_parameters()}
    for name, parameter in layer.named_parameters():
        of_bias = name == "bias"
        of_matrices = name in ("value", "output", "positional_sharpness")
        source = "bias" if of_bias else "weight"
        parameter.requires_grad_((of_bias or of_matrices) and trained.get(source, False))
    _ = layer.evaluation  # raises where an explicit one does not apply
    return layer.train(conv.training)


def convert(model: Model, **options: Any) -> Model | MultiHeadSelfAttention:
    """Copy a network and replace every convolution and average pooling in the copy by attention.

    Args:
        model: any module, a convolution itself included; left as it is. A convolution used in two
            places becomes one layer used in two places, and a weight or bias shared by two
            convolutions is shared by their layers. The layer of a pooling takes the dtype
            and the device of the model's first parameter.
        options: as `attention_from_conv` takes them, for every convolution; the encoding, which a
            pooling has of its own, for convolutions alone.

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
    biases: dict[int, nn.Parameter | None] = {}
    # A pooling has an encoding and a boundary of its own.
    of_pooling = {n: o for n, o in options.items() if n not in ("encoding", "boundary")}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    for path, module in model.named_modules():
        if not isinstance(module, SOURCES):
            continue
        name = path or type(module).__name__
        try:
            if isinstance(module, POOLINGS):
                layer = attention_from_conv(module, **of_pooling).to(like.device, like.dtype)
                # Not by way of float32: window / divisor, rounded once.
                layer.head_matrices()[0].data.copy_(stencil_of(module, torch.float64).matrices)
            else:
                layer = attention_from_conv(module, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        memo[id(module)] = layer
        if isinstance(module, POOLINGS):
            continue
        first_name, first = owners.setdefault(id(module.weight), (name, module))
        if first is not module:
            _share_matrices(memo[id(first)], layer, first_name, name)
        if module.bias is not None:
            layer.bias = biases.setdefault(id(module.bias), layer.bias)
    # deepcopy takes what the memo holds for the copy, wherever a convolution is referred to.
    return copy.deepcopy(model, memo)


def _share_matrices(
    first: MultiHeadSelfAttention,
    second: MultiHeadSelfAttention,
    first_name: str,
    name: str,
) -> None:
    same_order = first.geometry.transposed == second.geometry.transposed
    if not same_order or first.value.shape != second.value.shape:
        raise TypeError(
            f"{name}: shares its weight with {first_name}, a convolution of another kind; "
            "accepted: a weight of its own, or one shared by convolutions of one kind and groups"
        )
    second.value, second.output = first.value, first.output


def _check_mixing(encoding: Mixing, normaliser: Normaliser, sharpness: float | None) -> None:
    if sharpness is not None:
        raise ValueError(
            f"sharpness is {sharpness}; accepted: None, since the heads of {encoding} mix all taps "
            "and select no shift"
        )
    if not isinstance(normaliser, Softmax):
        raise ValueError(
            f"normaliser is {normaliser}; accepted: 'softmax', whose mixtures {encoding} is made of"
        )


def _at_the_border(
    encoding: Encoding, normaliser: Normaliser, boundary: Boundary | None, stencil: Stencil
) -> tuple[Encoding, Boundary]:
    """The encoding and the boundary, where None asks for the natural one if there is one."""
    mode = stencil.border.name
    natural = natural_encoding(encoding, mode)
    if mode == "replicate" and getattr(normaliser, "vanishes", False):
        natural = None  # a head whose target is beyond the edge sees nothing
    bounded_reach = getattr(encoding, "bounded_reach", False)
    if mode == "zeros" and bounded_reach and not stencil.geometry.reach_is_bounded:
        natural = None
    if boundary is None:
        boundary = BOUNDARIES["padded" if natural is None else "natural"]
    if boundary.name != "natural":
        return encoding, boundary
    if natural is None:
        raise ValueError(
            f"boundary is 'natural'; accepted: 'padded' or 'auto', since {encoding} has no natural "
            f"border for padding_mode {mode!r} with {normaliser}"
        )
    return natural, boundary


def _of_window(
    geometry: WindowGeometry,
    encoding: str | Encoding,
    normaliser: Normaliser,
    boundary: Boundary | None,
) -> tuple[Encoding, Boundary]:
    """The encoding and the boundary of a uniform head; nothing else is accepted for them."""
    if encoding != "quadratic":
        raise ValueError(
            f"encoding is {encoding!r}; accepted: none for an average pooling, since its one head "
            "has a window and no shift"
        )
    if not isinstance(normaliser, Softmax):
        raise ValueError(
            f"normaliser is {normaliser}; accepted: 'softmax' for an average pooling, which shares "
            "the attention evenly"
        )
    own = BOUNDARIES["natural" if geometry.counted == "pixels" else "padded"]
    if boundary not in (None, own):
        raise ValueError(
            f"boundary is {boundary.name!r}; accepted: 'auto' or {own.name!r}, since torch counts "
            f"{geometry.counted} in the divisor of this average pooling"
        )
    return Window(geometry.window), own


def _check_sharpness(sharpness: float | None) -> None:
    if sharpness is None:
        return
    if isinstance(sharpness, bool) or not isinstance(sharpness, Real):
        raise TypeError(f"sharpness is a {type(sharpness).__name__}; accepted: a number or None")
    # Compared, not converted: an integer may be too large for a float.
    if not 0 < sharpness <= sys.float_info.max:
        raise ValueError(f"sharpness is {sharpness}; accepted: a positive, finite number or None")


def _chosen(
    argument: str,
    given: Any,
    named: Mapping[str, Part],
    protocol: type[Part] | None = None,
    impossible: Mapping[str, str] = MappingProxyType({}),
) -> Part:
    """The part that a name stands for, or the given object itself if it has the protocol."""
    accepted = ", ".join(map(repr, named))
    if protocol is not None:
        accepted += f" or an object with the methods of {protocol.__name__}"
    if isinstance(given, str):
        if given in named:
            return named[given]
        if given in impossible:
            raise ValueError(f"{argument} is {given!r}; accepted: {accepted}. {impossible[given]}")
        raise ValueError(f"{argument} is {given!r}; accepted: {accepted}")
    if protocol is not None and isinstance(given, protocol) and not isinstance(given, type):
        return given
    raise TypeError(f"{argument} is {given!r}; accepted: {accepted}")
