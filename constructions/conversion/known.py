"""Classes of others, by name, and weights that torch makes: what each of them computes.

Classes of other libraries were read in their sources, at the versions given. None is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from constructions.conversion.following import Live, Recognised
from constructions.sources import AnyConvolution
from constructions.sources.convolutions import check_kind, check_numbers

WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks of torch's own that make a weight, or a bias, before each call."""


def makes_its_weight(module: nn.Module) -> bool:
    """Whether torch makes the weight of a module, by a hook or a parametrisation."""
    return bool(weight_hooks(module)) or parametrize.is_parametrized(module)


def weight_hooks(module: nn.Module) -> list[Callable[..., None]]:
    """The hooks of a module that make its weight or its bias."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WEIGHT_HOOKS)]


def plain_like(
    conv: AnyConvolution,
    weight: Tensor,
    bias: Tensor | None,
    padding: Any,
    padding_mode: str,
) -> AnyConvolution:
    """A convolution of torch's own with the options of another and a weight made for it."""
    kind: Any = check_kind(conv)
    plain = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=False,
        padding_mode=padding_mode,
        device="meta",
        **({"output_padding": conv.output_padding} if conv.transposed else {}),
    )
    plain.weight = _as_parameter(weight)
    plain.bias = None if bias is None else _as_parameter(bias)
    result: AnyConvolution = plain
    return result


def _as_parameter(numbers: Tensor) -> nn.Parameter:
    if isinstance(numbers, nn.Parameter):
        own: nn.Parameter = numbers
        return own
    return nn.Parameter(numbers.detach(), requires_grad=False)


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """The module in evaluation, where looking at its weight changes nothing, and no gradients."""
    flags = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            module.eval()
            yield
    finally:
        for part, training in flags.items():
            part.training = training


def _own_weight(conv: AnyConvolution) -> Tensor:
    """The weight as the hooks and parametrisations of torch make it."""
    for hook in weight_hooks(conv):
        hook(conv, ())
    weight = conv.weight
    if "weight" in vars(conv):  # as a hook has put it there; a copy could not take its history
        conv.weight = weight.detach()
    return weight


def _own_bias(conv: AnyConvolution) -> Tensor | None:
    bias = conv.bias
    if "bias" in vars(conv) and bias is not None:
        conv.bias = bias.detach()
    return bias


def _as(
    conv: AnyConvolution,
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    pad: Callable[..., Tensor] | None = None,
    padding: Any = None,
    padding_mode: str = "zeros",
) -> Recognised:
    """A convolution of what becomes of its own weight, and of the padded image.

    Args:
        conv: the module.
        weight: from its own weight to the one that it applies; None if that is the same.
        pad: as `Live`'s.
        padding: what the convolution adds by itself; None for what the module says.
        padding_mode: likewise.
    """

    def made() -> Tensor:
        own = _own_weight(conv)
        return own if weight is None else weight(own)

    now = made()
    check_numbers(now)
    plain = plain_like(
        conv, now, conv.bias, conv.padding if padding is None else padding, padding_mode
    )
    return Recognised(plain, Live(made, partial(_own_bias, conv), pad))


def as_its_base(conv: Any) -> Recognised:
    """What nn.Conv computes, of its weight or the one that is made for it."""
    if not makes_its_weight(conv):
        check_numbers(conv.weight)
        return Recognised(plain_like(conv, conv.weight, conv.bias, conv.padding, conv.padding_mode))
    return _as(conv, padding_mode=conv.padding_mode)


def _same(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The image with the zeros of TensorFlow's "same": as many outputs as ceil(size / stride).

    The odd one out stands at the end.
    """
    margins: list[int] = []
    for axis in reversed(range(len(kernel))):
        size, step = x.shape[axis - len(kernel)], stride[axis]
        reach = (math.ceil(size / step) - 1) * step + (kernel[axis] - 1) * dilation[axis] + 1
        total = max(reach - size, 0)
        margins += [total // 2, total - total // 2]
    return F.pad(x, margins)


def _padded_as_same(conv: Any, x: Tensor) -> Tensor:
    return _same(x, conv.kernel_size, conv.stride, conv.dilation)


def _pooled_as_same(pool: Any, x: Tensor) -> Tensor:
    return _same(x, pool.kernel_size, pool.stride, (1,) * len(pool.kernel_size))


def _timm_same(conv: Any) -> Recognised:
    return _as(conv, pad=partial(_padded_as_same, conv), padding=0)


def _timm_pool_same(pool: Any) -> Recognised:
    plain = nn.AvgPool2d(
        pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad
    )
    return Recognised(plain, Live(pad=partial(_pooled_as_same, pool)))


def _standardised(conv: Any, weight: Tensor, gain: Tensor | None = None) -> Tensor:
    """Each output's kernel with mean 0 and variance 1, times a gain (arXiv 1903.10520)."""
    rows = weight.reshape(1, conv.out_channels, -1)
    made = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=conv.eps)
    return made.reshape_as(weight)


def _scaled(conv: Any, weight: Tensor) -> Tensor:
    return _standardised(conv, weight, (conv.gain * conv.scale).view(-1))


def _timm_std(conv: Any) -> Recognised:
    return _as(conv, weight=partial(_standardised, conv))


def _timm_std_same(conv: Any) -> Recognised:
    pad = partial(_padded_as_same, conv) if conv.same_pad else None
    return _as(conv, weight=partial(_standardised, conv), pad=pad)


def _timm_scaled(conv: Any) -> Recognised:
    return _as(conv, weight=partial(_scaled, conv))


def _timm_scaled_same(conv: Any) -> Recognised:
    pad = partial(_padded_as_same, conv) if conv.same_pad else None
    return _as(conv, weight=partial(_scaled, conv), pad=pad)


def _bit(conv: Any) -> Recognised:
    # Its padding is a module, None where that of the convolution is enough.
    return _as(conv, weight=partial(_standardised, conv), pad=conv.pad)


def _perceiver(conv: Any) -> Recognised:
    return _as(conv, pad=conv.zero_pad_2d, padding_mode=conv.padding_mode)


def _padded_left(conv: Any, x: Tensor, padding_cache: Any = None) -> Tensor:
    """A signal with what came before it, or zeros."""
    if padding_cache is not None:
        padded: Tensor = padding_cache.update(x, conv.cache_key, conv)
        return padded
    return F.pad(x, (conv.left_pad, 0))


def _causal(conv: Any) -> Recognised:
    return _as(conv, pad=partial(_padded_left, conv), padding_mode=conv.padding_mode)


def _padded_in_time(conv: Any, x: Tensor, padding_cache: Any = None) -> Tensor:
    """Frequencies padded on both sides; times with what came before, or zeros."""
    x = F.pad(x, (conv.freq_pad[0], conv.freq_pad[1]))
    if padding_cache is not None:
        padded: Tensor = padding_cache.update(x, conv.cache_key, conv)
        return padded
    return F.pad(x, (0, 0, conv.time_pad[0], conv.time_pad[1]))


def _causal_in_time(conv: Any) -> Recognised:
    return _as(conv, pad=partial(_padded_in_time, conv), padding_mode=conv.padding_mode)


def _padded_before(conv: Any, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """A video with the frames that came before it, and zeros for those that are missing."""
    margins = list(conv._padding)
    if cache_x is not None and margins[4] > 0:
        margins[4] -= cache_x.shape[2]
        x = torch.cat([cache_x.to(x.device), x], dim=2)
    return F.pad(x, margins)


def _causal_video(conv: Any) -> Recognised:
    return _as(conv, pad=partial(_padded_before, conv), padding_mode=conv.padding_mode)


KNOWN: Mapping[str, Callable[[Any], Recognised]] = {
    # timm 1.0.31
    "timm.layers.conv2d_same.Conv2dSame": _timm_same,
    "timm.layers.pool2d_same.AvgPool2dSame": _timm_pool_same,
    "timm.layers.std_conv.StdConv2d": _timm_std,
    "timm.layers.std_conv.StdConv2dSame": _timm_std_same,
    "timm.layers.std_conv.ScaledStdConv2d": _timm_scaled,
    "timm.layers.std_conv.ScaledStdConv2dSame": _timm_scaled_same,
    # transformers 5.23
    **{
        f"transformers.models.{name}": recognise
        for name, recognise in {
            "bit.modeling_bit.WeightStandardizedConv2d": _bit,
            "perceiver.modeling_perceiver.Conv2dSamePadding": _perceiver,
            "gemma4.modeling_gemma4.Gemma4AudioCausalConv1d": _causal,
            "voxtral_realtime.modeling_voxtral_realtime.VoxtralRealtimeCausalConv1d": _causal,
            "muse_spark.modeling_muse_spark.MuseSparkAudioCausalConv1d": _causal,
            "nemotron_asr_streaming.modeling_nemotron_asr_streaming."
            "NemotronAsrStreamingEncoderCausalConv1d": _causal,
            "nemotron_asr_streaming.modeling_nemotron_asr_streaming."
            "NemotronAsrStreamingEncoderCausalConv2D": _causal_in_time,
        }.items()
    },
    # diffusers 0.42: the first computes a large video in parts, the others pad before it
    **{
        f"diffusers.models.autoencoders.{name}": recognise
        for name, recognise in {
            "autoencoder_kl_cogvideox.CogVideoXSafeConv3d": as_its_base,
            "autoencoder_kl_wan.WanCausalConv3d": _causal_video,
            "autoencoder_kl_qwenimage.QwenImageCausalConv3d": _causal_video,
        }.items()
    },
}
"""Classes of others, by module and name, whose `forward` is read here."""


def known_of(module: nn.Module) -> Callable[[Any], Recognised] | None:
    """What is known of the class whose `forward` a module runs, if it is a class of others."""
    if "forward" in vars(module):
        return None
    for kind in type(module).__mro__:
        own = f"{kind.__module__}.{kind.__qualname__}"
        if own in KNOWN:
            return KNOWN[own]
        if any(
            n in vars(kind) for n in ("forward", "_conv_forward", "_output_padding", "__call__")
        ):
            return None
    return None
