"""From attention back to convolutions: what a converted network has learnt, as a CNN again."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from constructions.conversion import Following
from constructions.heads import Kind
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import AnySource
from constructions.sources.native import NativeAdaptive, NativeConvolution, NativePooling

Model = TypeVar("Model", bound=nn.Module)


def revert(model: Model) -> Model | AnySource:
    """Copy a network and put a convolution in the place of every attention layer in the copy.

    The way back from `convert`: kernels and biases are those that the layers have now, trained ones
    too; a kernel that two layers share is shared by their convolutions. A finite sharpness is left
    behind: the convolution is the limit of its layer.

    Args:
        model: any module, an attention layer itself included; left as it is.

    Returns:
        The copy; the convolution if the model is itself a layer.

    Raises:
        TypeError: model is not a module.
        ValueError: a layer is none of a convolution: it was made of heads, its content terms are
            live, or its heads have left the taps. The message names its path.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")
    memo: dict[int, Any] = {}
    followed = {id(m.layer) for m in model.modules() if isinstance(m, Following)}
    parameters: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        if isinstance(module, Following):
            memo[id(module)] = copy.deepcopy(module.source)
        elif isinstance(module, MultiHeadSelfAttention) and id(module) not in followed:
            name = path or type(module).__name__
            memo[id(module)] = _source_of(module, name, parameters)
    return copy.deepcopy(model, memo)


def _source_of(
    layer: MultiHeadSelfAttention, name: str, parameters: dict[int, nn.Parameter]
) -> AnySource:
    """The convolution or pooling that a layer expresses."""
    native, dimension = layer.native, layer.geometry.dimension
    if isinstance(native, NativePooling):
        options: dict[str, Any] = dict(vars(native))
        if dimension == 1:  # which has none
            del options["divisor_override"]
        pooling: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dimension - 1]
        return pooling(**options).train(layer.training)  # type: ignore[no-any-return]
    if isinstance(native, NativeAdaptive):
        kinds: tuple[Any, ...] = (
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
        )
        adaptive: Any = kinds[dimension - 1](native.output_size)
        return adaptive.train(layer.training)  # type: ignore[no-any-return]
    if not isinstance(native, NativeConvolution):
        raise ValueError(
            f"{name}: the layer was made of heads, and of no convolution; accepted: layers that "
            "`convert` or `attention_from_conv` has made"
        )
    # Heads that share a tap have no kernel stored; what they apply there adds up.
    on_taps = layer.shares_structure() if not layer.stores_kernel else layer.is_in_order()
    if layer.has_live_content() or not (on_taps or layer.kind is Kind.MIXING):
        raise ValueError(
            f"{name}: the layer is no convolution any more, since its content terms are live or "
            "its heads have left their taps; accepted: heads on the taps, each on its own. `lower` "
            "takes positional heads that have moved"
        )
    classes: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if native.transposed:
        classes = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    options = dict(vars(native))
    if not options.pop("transposed"):
        del options["output_padding"]
    conv: Any = classes[dimension - 1](
        layer.in_channels,
        layer.out_channels,
        groups=layer.groups,
        bias=layer.bias is not None,
        device="meta",
        dtype=layer.dtype,
        **options,
    )
    for own, source in (("weight", layer.weight), ("bias", layer.bias)):
        if source is not None:
            if id(source) not in parameters:
                kept = source.detach().clone(memory_format=torch.preserve_format)
                parameters[id(source)] = nn.Parameter(kept, source.requires_grad)
            conv.register_parameter(own, parameters[id(source)])
    return conv.train(layer.training)  # type: ignore[no-any-return]
