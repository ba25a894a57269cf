"""Networks and convolutions of timm and transformers are converted, and compute the same.

Weights are random, and branches that start at zero are redrawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.others import TRANSFORMERS, of_transformers, outputs, redrawn
from constructions import Following, certify, convert
from constructions.conversion.known import KNOWN
from tests.support.helpers import filled, integers
from tests.support.libraries import imported

# Each class of the table --------------------------------------------------------------------------

OF_TRANSFORMERS = "transformers.models"
CLASSES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]]] = {
    "timm.layers.conv2d_same.Conv2dSame": [
        ((2, 4, 3), {"stride": 2}, (7, 6)),
        ((4, 4, (2, 3)), {"stride": (1, 2), "dilation": 2, "groups": 2, "bias": False}, (5, 8)),
    ],
    "timm.layers.std_conv.StdConv2d": [
        ((2, 4, 3), {"stride": 2}, (7, 6)),
        ((4, 6, 3), {"groups": 2, "bias": True, "eps": 1e-5}, (5, 5)),
    ],
    "timm.layers.std_conv.StdConv2dSame": [
        ((2, 4, 3), {"stride": 2}, (7, 6)),
        ((2, 4, 3), {}, (5, 6)),
    ],
    "timm.layers.std_conv.ScaledStdConv2d": [((2, 4, 3), {"gamma": 1.7, "stride": 2}, (7, 6))],
    "timm.layers.std_conv.ScaledStdConv2dSame": [
        ((2, 4, 3), {"gamma": 1.7, "stride": 2}, (7, 6)),
        ((2, 4, 3), {"dilation": 2}, (7, 6)),
    ],
    f"{OF_TRANSFORMERS}.bit.modeling_bit.WeightStandardizedConv2d": [
        ((2, 4, 3), {"stride": 2}, (7, 6)),
        ((2, 4, 3), {"padding": "valid"}, (7, 6)),
    ],
    f"{OF_TRANSFORMERS}.perceiver.modeling_perceiver.Conv2dSamePadding": [
        ((2, 4), {"kernel_size": (2, 5), "stride": 2}, (7, 6)),
        ((2, 4), {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (5, 6)),
    ],
    f"{OF_TRANSFORMERS}.gemma4.modeling_gemma4.Gemma4AudioCausalConv1d": [
        ((2, 4, 5), {"stride": 2}, (9,)),
    ],
    f"{OF_TRANSFORMERS}.voxtral_realtime.modeling_voxtral_realtime.VoxtralRealtimeCausalConv1d": [
        ((2, 4, 5, "key"), {"stride": 2, "dilation": 2}, (9,)),
    ],
    f"{OF_TRANSFORMERS}.muse_spark.modeling_muse_spark.MuseSparkAudioCausalConv1d": [
        ((2, 4, 5, "key"), {"stride": 2}, (9,)),
    ],
    f"{OF_TRANSFORMERS}.nemotron_asr_streaming.modeling_nemotron_asr_streaming."
    "NemotronAsrStreamingEncoderCausalConv1d": [((2, 4, 5, "key"), {}, (9,))],
    f"{OF_TRANSFORMERS}.nemotron_asr_streaming.modeling_nemotron_asr_streaming."
    "NemotronAsrStreamingEncoderCausalConv2D": [((2, 4, (3, 5), "key"), {"stride": 2}, (6, 9))],
}
POOLING = "timm.layers.pool2d_same.AvgPool2dSame"
CASES = [(name, *case) for name, cases in CLASSES.items() for case in cases]


def test_every_class_of_the_table_is_tested() -> None:
    absent = {name for name in KNOWN if name.startswith("diffusers.")}  # not in the extra
    assert set(CLASSES) | {POOLING} == KNOWN.keys() - absent


@pytest.mark.parametrize(
    ("name", "args", "options", "size"),
    CASES,
    ids=[c[0].rpartition(".")[2] + f" {c[1:]}" for c in CASES],
)
def test_class_of_the_table_computes_what_its_layer_does(
    name: str, args: tuple[Any, ...], options: dict[str, Any], size: tuple[int, ...]
) -> None:
    module, _, kind = name.rpartition(".")
    source: Any = getattr(imported(module), kind)(*args, **options).double().eval()
    filled(source)
    layer: Any = convert(source)
    assert type(layer) is Following
    x = integers(2, args[0], *size).double()
    wanted, y = source(x), layer(x)
    if "Std" in kind or "Standardized" in kind:  # the weights are no integers, and equal bits
        plain = plain_of(source, layer)
        padded = x if pad_of(layer) is None else pad_of(layer)(x)
        certificate = certify(layer.current(), plain, padded)
        assert certificate.holds
        # Both are near the exact convolution of one weight.
        assert ((y - wanted).abs() <= certificate.bound + certificate.conv_error).all()
        assert ((wanted - plain(padded)).abs() == 0).all()
        return
    assert torch.equal(y, wanted)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, (1, 2)), (4, 3)], ids=str)
def test_pooling_padded_as_in_tensorflow_is_within_its_bound(window: int, stride: Any) -> None:
    pool = imported("timm.layers").AvgPool2dSame(window, stride=stride)
    layer: Any = convert(pool)
    assert type(layer) is Following
    x = torch.randn(2, 3, 6, 7)
    plain: Any = nn.AvgPool2d(window, pool.stride)
    padded = pad_of(layer)(x)
    certificate = certify(layer.layer, plain, padded)
    assert certificate.holds
    assert torch.equal(pool(x), plain(padded))
    assert torch.equal(layer(x), layer.layer(padded))


def pad_of(layer: Any) -> Any:
    """How the module of a layer pads, or None."""
    return layer._live.pad


def plain_of(source: Any, layer: Any) -> Any:
    """The convolution of torch's own with the weight that the source has now."""
    kind: Any = nn.Conv2d
    plain = kind(
        source.in_channels,
        source.out_channels,
        source.kernel_size,
        source.stride,
        source.padding,
        source.dilation,
        source.groups,
        dtype=torch.float64,
    )
    plain.weight = nn.Parameter(layer._live.weight().detach())
    plain.bias = source.bias
    return plain


# Whole networks -----------------------------------------------------------------------------------


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model: nn.Module = imported("timm").create_model(name, **options)
        return model

    return made


def encodec() -> nn.Module:
    library = imported("transformers")
    config = library.EncodecConfig(
        num_filters=4, hidden_size=16, upsampling_ratios=[2, 2], codebook_dim=16, num_lstm_layers=1
    )
    return Encoder(library.EncodecModel(config))


class Encoder(nn.Module):
    """The continuous parts of an audio codec, which are convolutions and their transposes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, x: Tensor) -> Tensor:
        """There and back, without the codes between."""
        y: Tensor = self.decoder(self.encoder(x))
        return y


def small(name: str) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    """One of transformers', as the run over networks makes it."""
    return lambda: of_transformers(name).make(), TRANSFORMERS[name][2]


IMAGE = (1, 3, 64, 64)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (of_timm("test_resnet"), IMAGE),
    "depthwise, squeezed": (of_timm("test_efficientnet"), IMAGE),
    "of many kinds of blocks": (of_timm("test_byobnet"), IMAGE),
    "padded as in TensorFlow": (of_timm("tf_mobilenetv3_small_075"), IMAGE),
    "standardised": (of_timm("resnetv2_50x1_bit"), IMAGE),
    "scaled and standardised": (of_timm("nf_resnet26"), IMAGE),
    "reads the weight of its convolution": (of_timm("edgenext_xx_small"), IMAGE),
    "weight-normed codec": (encodec, (1, 1, 64)),
    "patches": small("vit"),
    "patches, reads the weight": small("clip-vision"),
    "reads the stride": small("mobilenet_v1"),
    "BiT": small("bit-same"),
    "pools": small("poolformer"),
    "weight-normed": small("wav2vec2"),
    "transposed, dilated": small("dac"),
    "of volumes": small("videomae"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=[*NETWORKS])
def test_network_is_converted_whole_and_computes_the_same(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model = redrawn(make()).double()
    x = torch.randn(*shape, dtype=torch.float64)
    converted, report = convert(model, example=x, report=True)
    assert not report.left
    assert report.replaced
    with torch.no_grad():
        wanted, y, again = (outputs(m(x)) for m in (model, converted, copy.deepcopy(converted)))
        rough = outputs(copy.deepcopy(model).float()(x.float()))
    assert wanted
    for of_model, of_converted, of_copy, of_float in zip(wanted, y, again, rough, strict=True):
        # No bound is carried through the other layers. The two differ by roundings of float64: by
        # less than those of float32 make of the model itself.
        differs, rounds = of_converted - of_model, of_float - of_model
        assert not differs.any() or differs.abs().max() < rounds.abs().max()
        assert torch.equal(of_copy, of_converted)


@pytest.mark.parametrize("name", ["CondConv2d"])
def test_convolution_by_function_is_told_of(name: str) -> None:
    conv = imported("timm.layers").CondConv2d(2, 4, 3, num_experts=2).eval()

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.route = conv, nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x, self.route(x).mean((2, 3)))
            return y

    _, report = convert(Routed(), example=torch.zeros(1, 2, 6, 6), report=True)
    assert [*report.replaced] == ["route"]
    assert "as a function" in report.left["conv"]
