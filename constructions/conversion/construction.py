"""From a convolution to attention: the construction, one line a stage."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn

from constructions.encodings import ENCODINGS, IMPOSSIBLE, Encoding, EncodingLike, complete_encoding
from constructions.evaluation import AUTO, EVALUATIONS
from constructions.formats import accumulator
from constructions.geometry.view import BOUNDARIES, Boundary, boundary_of
from constructions.geometry.window import WindowGeometry
from constructions.heads import Heads, Kind, heads_of, mixtures
from constructions.heads.narrow import check_head_dim
from constructions.heads.stacked import MOST_LAYERS, stacked
from constructions.layer.attention import Evaluation, MultiHeadSelfAttention
from constructions.normalisers import (
    IMPOSSIBLE_NORMALISERS,
    NORMALISERS,
    Normaliser,
    NormaliserLike,
    Softmax,
    complete_normaliser,
)
from constructions.sources import AnySource, Stencil, stencil_of

Part = TypeVar("Part")


@overload
def attention_from_conv(
    conv: AnySource,
    *,
    encoding: str | EncodingLike = ...,
    normaliser: str | NormaliserLike = ...,
    sharpness: float | None = ...,
    boundary: str = ...,
    evaluation: str = ...,
    heads: str | int = ...,
    finite: bool = ...,
    head_dim: int | None = ...,
    depth: Literal[1] = ...,
) -> MultiHeadSelfAttention: ...


@overload
def attention_from_conv(
    conv: AnySource,
    *,
    encoding: str | EncodingLike = ...,
    normaliser: str | NormaliserLike = ...,
    sharpness: float | None = ...,
    boundary: str = ...,
    evaluation: str = ...,
    heads: str | int = ...,
    finite: bool = ...,
    head_dim: int | None = ...,
    depth: int,
) -> MultiHeadSelfAttention | nn.Sequential: ...


def attention_from_conv(
    conv: AnySource,
    *,
    encoding: str | EncodingLike = "quadratic",
    normaliser: str | NormaliserLike = "softmax",
    sharpness: float | None = None,
    boundary: str = "auto",
    evaluation: str = "auto",
    heads: str | int = "taps",
    finite: bool = False,
    head_dim: int | None = None,
    depth: int = 1,
) -> MultiHeadSelfAttention | nn.Sequential:
    """Build the attention layer that computes a given convolution, one head for each tap.

    Head h attends to the key at (query + offset of tap h) and applies that tap's matrix:
    W_val^h W_out^h = W_h, one of the two factors the identity (arXiv 1911.03584, Theorem 1).
    Theorem: `attention_expresses_convolution`. An average pooling becomes one uniform head over
    its window.

    Args:
        conv: any `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d`, `nn.AvgPool1d/2d/3d`, or
            `nn.AdaptiveAvgPool1d/2d/3d` to one pixel on each axis, or to all; left as it is. A
            pooling has no dtype: its layer is float32 until it is moved.
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
        heads: "taps", one for each tap; "minimal", as few as `constructions.heads.count` says, and
            one more close to its border case; "signed", as many differences of two softmaxes as the
            taps have rank; or a number, the best heads that are found if it is less than minimal,
            whose error is the certificate's leak. All but the first mix the taps, on padded keys,
            without padding or on a torus, and choose their own encoding, softmax and logits.
            Theorem: `heads_count_the_rank_of_the_kernel`.
        finite: whether all logits of minimal heads are to be finite, for one head more where 0 is
            not in the convex hull of the taps. Those of signed heads always are.
        head_dim: D_h, the dimension of every head: a tap whose matrix has a higher rank is shared
            by several, Σ ⌈rank W_δ / D_h⌉ heads. Theorem: `head_dimension_is_block_term_rank`.
            None for the smaller of the numbers of channels, one head for each tap.
        depth: how many layers there are. Two express a kernel of K_1 x K_2 taps with K_1 + K_2
            heads, the first axis first; as many as axes, an axis each; more, or two in one
            dimension, take an axis in steps of 1, 2, 4 or others, so that heads grow like log K:
            on the image's own grid, or with boundary "padded" on the padded one. Theorem:
            `depth_buys_heads`.

    Returns:
        The layer, of the convolution's dtype, device, training flag and requires_grad. Content and
        per-head positional parameters are frozen. With a depth above 1, an `nn.Sequential` of such
        layers, the bias in the last.

    Raises:
        TypeError: conv is not a convolution of torch's own, or is hooked, parametrised, lazy or
            complex; an argument has the wrong type.
        ValueError: an unsupported dtype, an unknown name, an encoding or a normaliser that cannot
            express the convolution (with the theorem that says so), a sharpness that is not
            positive and finite, no sharpness where the normaliser is never one-hot, an explicit
            boundary or evaluation that does not apply, heads with an encoding, a normaliser, a
            sharpness, a dimension or a depth that is not theirs, or a depth that the border, the
            stride or the padding has no layers for.
    """
    options: dict[str, Any] = {
        "encoding": encoding,
        "normaliser": normaliser,
        "sharpness": sharpness,
        "boundary": boundary,
        "evaluation": evaluation,
        "heads": heads,
        "finite": finite,
        "head_dim": head_dim,
    }
    stencil = stencil_of(conv)
    if check_depth(depth) == 1:
        return trained_as(conv, expressed(stencil, **options))
    check_heads(heads, finite, depth=depth)
    layers = (expressed(part, **options) for part in stacked(stencil, depth, boundary))
    return nn.Sequential(*(trained_as(conv, layer) for layer in layers)).train(conv.training)


def expressed(
    stencil: Stencil,
    *,
    encoding: str | EncodingLike = "quadratic",
    normaliser: str | NormaliserLike = "softmax",
    sharpness: float | None = None,
    boundary: str = "auto",
    evaluation: str = "auto",
    heads: str | int = "taps",
    finite: bool = False,
    head_dim: int | None = None,
) -> MultiHeadSelfAttention:
    """The layer that computes a stencil: the picture, a line a stage.

    Arguments and errors are those of `attention_from_conv`.
    """
    encoder = _chosen("encoding", encoding, ENCODINGS, complete_encoding, IMPOSSIBLE)
    normalise = _chosen(
        "normaliser", normaliser, NORMALISERS, complete_normaliser, IMPOSSIBLE_NORMALISERS
    )
    evaluations = _chosen("evaluation", evaluation, WAYS)
    _check_sharpness(sharpness, accumulator(stencil.matrices.dtype))
    if head_dim is not None:
        check_head_dim(head_dim)
    around = _chosen("boundary", boundary, {"auto": None, **BOUNDARIES})
    check_heads(
        heads,
        finite,
        encoding=encoding,
        normaliser=normaliser,
        sharpness=sharpness,
        head_dim=head_dim,
    )

    if heads != "taps":
        encoder = mixtures(stencil, heads, finite=finite)
    encoder, around = _at_the_border(stencil, encoder, normalise, around)
    made = heads_of(stencil, encoder, head_dim)
    normalise, sharpness = _sharpened(made, normalise, sharpness)
    layer = MultiHeadSelfAttention(
        made,
        geometry=stencil.geometry,
        border=stencil.border,
        boundary=around,
        normaliser=normalise,
        evaluations=evaluations,
        sharpness=sharpness,
        bias=stencil.bias,
        native=stencil.native,
    )
    _ = layer.evaluation  # raises where an explicit one does not apply
    return layer


def check_depth(depth: object) -> int:
    """Raise unless it is a number of layers."""
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise TypeError(f"depth is a {type(depth).__name__}; accepted: an integer")
    if not 1 <= depth <= MOST_LAYERS:
        raise ValueError(f"depth is {depth}; accepted: 1 to {MOST_LAYERS} layers")
    return depth


WAYS: Mapping[str, Sequence[Evaluation]] = {
    "auto": AUTO,
    **{name: (evaluation,) for name, evaluation in EVALUATIONS.items()},
}
"""The evaluations that each name stands for, of which a layer takes the first that applies."""


def check_options(**options: Any) -> None:
    """Raise if no convolution could be expressed with these options.

    Raises:
        TypeError: an argument that there is not, or of the wrong type.
        ValueError: an unknown name, or a sharpness that is not positive and finite.
    """
    given = inspect.signature(attention_from_conv).bind(None, **options).arguments
    _chosen(
        "encoding", given.get("encoding", "quadratic"), ENCODINGS, complete_encoding, IMPOSSIBLE
    )
    _chosen(
        "normaliser",
        given.get("normaliser", "softmax"),
        NORMALISERS,
        complete_normaliser,
        IMPOSSIBLE_NORMALISERS,
    )
    _chosen("evaluation", given.get("evaluation", "auto"), WAYS)
    _check_sharpness(given.get("sharpness"), torch.float64)  # of any format
    _chosen("boundary", given.get("boundary", "auto"), {"auto": None, **BOUNDARIES})
    check_heads(
        given.get("heads", "taps"),
        given.get("finite", False),
        encoding=given.get("encoding", "quadratic"),
        normaliser=given.get("normaliser", "softmax"),
        sharpness=given.get("sharpness"),
        head_dim=given.get("head_dim"),
        depth=given.get("depth", 1),
    )
    if given.get("head_dim") is not None:
        check_head_dim(given["head_dim"])
    check_depth(given.get("depth", 1))


FEW = ("minimal", "signed")
"""Names of heads that mix, besides numbers of them."""


def check_heads(heads: object, finite: object, **of_taps: object) -> None:
    """Raise unless a choice of heads is one that there is, and goes with the other options.

    Args:
        heads: as `attention_from_conv` takes it.
        finite: likewise.
        of_taps: options that only heads for each tap have.

    Raises:
        TypeError: of another type.
        ValueError: another name or number, or an option that does not go with it.
    """
    accepted = "'taps', 'minimal', 'signed' or a number of at least 1"
    if not isinstance(finite, bool):
        raise TypeError(f"finite is a {type(finite).__name__}; accepted: True or False")
    if isinstance(heads, bool) or not isinstance(heads, str | int):
        raise TypeError(f"heads is {heads!r}; accepted: {accepted}")
    if heads not in ("taps", *FEW) and (isinstance(heads, str) or heads < 1):
        raise ValueError(f"heads is {heads!r}; accepted: {accepted}")
    if finite and heads not in FEW:
        raise ValueError(
            f"finite is True for heads {heads!r}; accepted: heads='minimal' or heads='signed', or "
            "a finite sharpness of a head for each tap"
        )
    if heads == "taps":
        return
    for name, default in (
        ("encoding", "quadratic"),
        ("normaliser", "softmax"),
        ("sharpness", None),
        ("head_dim", None),
        ("depth", 1),
    ):
        if of_taps.get(name, default) != default:
            raise ValueError(
                f"{name} is {of_taps[name]!r} for heads {heads!r}; accepted: {default!r}, since "
                "these heads have weights of their own"
            )


def trained_as(source: AnySource, layer: MultiHeadSelfAttention) -> MultiHeadSelfAttention:
    """The layer with the source's training flag, and trained where the source is."""
    trained = {name: p.requires_grad for name, p in source.named_parameters()}
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            of = "bias" if name == "bias" else "weight"
            parameter.requires_grad_(trained.get(of, False))
    return layer.train(source.training)


def _at_the_border(
    stencil: Stencil, encoding: Encoding, normaliser: Normaliser, asked: Boundary | None
) -> tuple[Encoding, Boundary]:
    """The encoding and the boundary, where None asks for the natural one if there is one."""
    if isinstance(stencil.geometry, WindowGeometry):
        return _around_a_window(stencil.geometry, encoding, asked)
    mode = stencil.border.name
    natural = encoding.natural(mode)
    if mode == "replicate" and normaliser.vanishes:
        natural = None  # a head whose target is beyond the edge sees nothing
    if mode == "zeros" and encoding.bounded_reach and not stencil.geometry.reach_is_bounded:
        natural = None
    boundary = BOUNDARIES["padded" if natural is None else "natural"] if asked is None else asked
    if boundary.name != "natural":
        return encoding, boundary
    if natural is None:
        raise ValueError(
            f"boundary is 'natural'; accepted: 'padded' or 'auto', since {encoding} has no natural "
            f"border for padding_mode {mode!r} with {normaliser}"
        )
    return natural, boundary


def _around_a_window(
    geometry: WindowGeometry, encoding: Encoding, asked: Boundary | None
) -> tuple[Encoding, Boundary]:
    """The boundary that torch's divisor asks for, and nothing else, for the one uniform head."""
    if encoding != ENCODINGS["quadratic"]:
        raise ValueError(
            f"encoding is {encoding!r}; accepted: none for an average pooling, since its one head "
            "has a window and no shift"
        )
    own = boundary_of(geometry)
    if asked not in (None, own):
        raise ValueError(
            f"boundary is {asked.name!r}; accepted: 'auto' or {own.name!r}, since torch counts "
            f"{geometry.counted} in the divisor of this average pooling"
        )
    return encoding, own


def _sharpened(
    heads: Heads, normaliser: Normaliser, sharpness: float | None
) -> tuple[Normaliser, float | None]:
    """The normaliser at the sharpness, and the sharpness if one applies to these heads."""
    if heads.kind is Kind.SELECTING:
        if sharpness is not None:
            return normaliser.at(float(sharpness)), sharpness
        if not math.isfinite(normaliser.one_hot_gap(heads.dtype)):
            raise ValueError(
                f"sharpness is None; accepted: a positive number, since {normaliser} is never "
                "one-hot"
            )
        return normaliser, None
    if heads.kind is Kind.MIXING and sharpness is not None:
        raise ValueError(
            f"sharpness is {sharpness}; accepted: None, since the heads of {heads.encoding} mix "
            "all taps and select no shift"
        )
    if not isinstance(normaliser, Softmax):
        what = "an average pooling, which shares the attention evenly"
        if heads.kind is Kind.MIXING:
            what = f"the mixtures that {heads.encoding} is made of"
        raise ValueError(f"normaliser is {normaliser}; accepted: 'softmax', for {what}")
    return normaliser, None  # scores of a uniform head, 0 and -inf, are the same at any sharpness


def _check_sharpness(sharpness: float | None, scores: torch.dtype) -> None:
    if sharpness is None:
        return
    if isinstance(sharpness, bool) or not isinstance(sharpness, Real):
        raise TypeError(f"sharpness is a {type(sharpness).__name__}; accepted: a number or None")
    # Compared, not converted: an integer may be too large for a float.
    if not 0 < sharpness <= sys.float_info.max:
        raise ValueError(f"sharpness is {sharpness}; accepted: a positive, finite number or None")
    if sharpness > (largest := torch.finfo(scores).max):
        raise ValueError(
            f"sharpness is {sharpness}; accepted: at most {largest:.6g}, beyond which scores "
            f"overflow {str(scores).removeprefix('torch.')}, or None for one-hot weights"
        )


def _chosen(
    argument: str,
    given: Any,
    named: Mapping[str, Part],
    completed: Callable[[object, str], Part] | None = None,
    impossible: Mapping[str, str] = MappingProxyType({}),
) -> Part:
    """The part that a name stands for, or what completes the given object."""
    accepted = ", ".join(map(repr, named))
    if completed is not None:
        accepted += f" or an object with the methods of {argument.capitalize()}"
    if isinstance(given, str):
        if given in named:
            return named[given]
        why = f". {impossible[given]}" if given in impossible else ""
        raise ValueError(f"{argument} is {given!r}; accepted: {accepted}{why}")
    if completed is not None:
        return completed(given, argument)
    raise TypeError(f"{argument} is {given!r}; accepted: {accepted}")
