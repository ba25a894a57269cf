"""Networks of timm, transformers and torchvision, each converted: `python -m benchmarks.others`.

One row a network: what was replaced and what was left, how far the outputs are apart in float32 and
float64, and what a forward pass, a training step and the stored numbers cost, all as ratios to the
original. Weights are random, and branches that start at zero are redrawn: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.networks import stored_bytes
from benchmarks.protocol import ROOT, Device, Row, digits, interleaved, table
from benchmarks.record import RECORDS, Load, commit, load
from constructions import convert
from tests.support.libraries import imported

TIMM = (
    "resnet18 resnet50 resnetv2_50 resnetv2_50x1_bit convnext_atto efficientnet_b0 "
    "tf_efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0 tf_efficientnet_cc_b0_4e "
    "mobilenetv3_small_050 mobilenetv3_large_100 tf_mobilenetv3_small_075 mobilenetv4_conv_small "
    "mobilenetv2_050 mobilenetv2_100 regnetx_002 regnety_002 densenet121 vgg11 inception_v3 "
    "inception_v4 xception41 legacy_xception repvgg_a0 ghostnet_050 ghostnet_100 hrnet_w18_small "
    "dla34 res2net50_14w_8s mixnet_s coatnet_pico_rw_224 coatnet_nano_rw_224 maxvit_pico_rw_256 "
    "maxxvit_rmlp_nano_rw_256 levit_128s convit_tiny swin_tiny_patch4_window7_224 "
    "vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 poolformer_s12 poolformerv2_s12 mobilevit_xxs "
    "mobilevitv2_050 fastvit_t8 efficientvit_b0 efficientvit_m0 sequencer2d_s resnetblur50 "
    "resnetaa50 resnet50_clip skresnet18 ecaresnet26t resnest14d cspresnet50 lambda_resnet26t "
    "halonet26t botnet26t_256 convmixer_768_32 pvt_v2_b0 twins_svt_small coat_tiny pit_ti_224 "
    "inception_next_atto starnet_s1 repvit_m0_9 repghostnet_050 tiny_vit_5m_224 lcnet_050 "
    "hgnetv2_b0 ese_vovnet19b_dw rexnet_100 caformer_s18 efficientformerv2_s0 visformer_tiny "
    "gcvit_xxtiny volo_d1_224 rdnet_tiny shvit_s1 mambaout_femto nextvit_small tresnet_m "
    "bat_resnext26ts seresnext26d_32x4d focalnet_tiny_srf resnet26t selecsls42 vgg11_bn nfnet_l0 "
    "eca_nfnet_l0 nf_resnet50 edgenext_xx_small xcit_nano_12_p16_224 test_resnet test_efficientnet "
    "test_byobnet"
)

TORCHVISION = (
    "resnet18 googlenet squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v3_small "
    "efficientnet_v2_s densenet121 regnet_y_400mf convnext_tiny swin_v2_t maxvit_t vit_b_32 alexnet"
)

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
_SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
_IMAGE, _SOUND = (1, 3, 64, 64), (1, 4000)
TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, Any], tuple[int, ...]]] = {
    "vit": ("ViT", _VIT, _IMAGE),
    "deit": ("DeiT", _VIT, _IMAGE),
    "dinov2": ("Dinov2", _VIT, _IMAGE),
    "clip-vision": ("CLIPVision", _VIT, _IMAGE),
    "siglip-vision": ("SiglipVision", _VIT, _IMAGE),
    "owlvit-vision": ("OwlViTVision", _VIT, _IMAGE),
    "beit": ("Beit", _VIT, _IMAGE),
    "yolos": ("Yolos", {**_VIT, "image_size": [64, 64]}, _IMAGE),
    "ijepa": ("IJepa", _VIT, _IMAGE),
    "swin": (
        "Swin",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
        _IMAGE,
    ),
    "swin2sr": (
        "Swin2SR",
        {"image_size": 64, "embed_dim": 16, "depths": [1], "num_heads": [2]},
        _IMAGE,
    ),
    "convnext": ("ConvNext", _STAGES, _IMAGE),
    "convnextv2": ("ConvNextV2", _STAGES, _IMAGE),
    "resnet": ("ResNet", {**_STAGES, "embedding_size": 16}, _IMAGE),
    "regnet": ("RegNet", {**_STAGES, "embedding_size": 16, "groups_width": 8}, _IMAGE),
    "bit": ("Bit", {**_STAGES, "embedding_size": 16, "num_groups": 8}, _IMAGE),
    "bit-same": (
        "Bit",
        {**_STAGES, "embedding_size": 16, "num_groups": 8, "global_padding": "SAME"},
        _IMAGE,
    ),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25}, _IMAGE),
    "mobilenet_v1, tf_padding=False": (
        "MobileNetV1",
        {"depth_multiplier": 0.25, "tf_padding": False},
        _IMAGE,
    ),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35}, _IMAGE),
    "efficientnet": (
        "EfficientNet",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 64, "hidden_dim": 320},
        _IMAGE,
    ),
    "segformer": ("Segformer", {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}, _IMAGE),
    "pvt": (
        "Pvt",
        {"image_size": 64, "hidden_sizes": [16, 16, 40, 32], "depths": [1, 1, 1, 1]},
        _IMAGE,
    ),
    "pvt_v2": ("PvtV2", {"hidden_sizes": [16, 16, 40, 32], "depths": [1, 1, 1, 1]}, _IMAGE),
    "cvt": ("Cvt", {}, _IMAGE),
    "levit": ("Levit", {}, (1, 3, 224, 224)),
    "poolformer": (
        "PoolFormer",
        {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
        _IMAGE,
    ),
    "mobilevit": ("MobileViT", {"image_size": 64}, _IMAGE),
    "mobilevitv2": ("MobileViTV2", {"image_size": 64, "width_multiplier": 0.5}, _IMAGE),
    "focalnet": ("FocalNet", {"image_size": 64, "embed_dim": 16, "depths": [1, 1]}, _IMAGE),
    "swiftformer": ("SwiftFormer", {}, (1, 3, 224, 224)),
    "glpn": ("GLPN", {"hidden_sizes": [16, 16, 40, 32], "depths": [1, 1, 1, 1]}, _IMAGE),
    "dinov3_convnext": ("DINOv3ConvNext", _STAGES, _IMAGE),
    "hgnet_v2": ("HGNetV2Backbone", {}, _IMAGE),
    "textnet": ("TextNet", {}, (1, 3, 64, 64)),
    "vitdet": ("VitDet", {**_VIT, "mlp_ratio": 2}, _IMAGE),
    "hiera": (
        "Hiera",
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
        },
        _IMAGE,
    ),
    "videomae": ("VideoMAE", {**_VIT, "num_frames": 4}, (1, 4, 3, 64, 64)),
    "vivit": ("Vivit", {**_VIT, "num_frames": 4, "tubelet_size": [2, 16, 16]}, (1, 4, 3, 64, 64)),
    "timesformer": ("Timesformer", {**_VIT, "num_frames": 4}, (1, 4, 3, 64, 64)),
    "wav2vec2": ("Wav2Vec2", _SPEECH, _SOUND),
    "wav2vec2, layer norm": (
        "Wav2Vec2",
        {**_SPEECH, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        _SOUND,
    ),
    "hubert": ("Hubert", _SPEECH, _SOUND),
    "wavlm": ("WavLM", _SPEECH, _SOUND),
    "unispeech": ("UniSpeech", _SPEECH, _SOUND),
    "data2vec-audio": (
        "Data2VecAudio",
        {**_SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
        _SOUND,
    ),
    "sew": ("SEW", {**_SPEECH, "squeeze_factor": 2}, _SOUND),
    "encodec": ("Encodec", {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32}, (1, 1, 1600)),
    "dac": (
        "Dac",
        {"encoder_hidden_size": 8, "decoder_hidden_size": 64, "hidden_size": 32},
        (1, 1, 2048),
    ),
    "mimi": (
        "Mimi",
        {
            "num_filters": 8,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "codebook_dim": 32,
            "vector_quantization_hidden_dimension": 32,
            "upsample_groups": 32,
        },
        (1, 1, 1920),
    ),
    "audio_spectrogram_transformer": (
        "AST",
        {k: v for k, v in _VIT.items() if k != "image_size"}
        | {"max_length": 64, "num_mel_bins": 32},
        (1, 64, 32),
    ),
}
"""Of transformers: the class's name, a small configuration, and the shape of an input."""


@dataclass(frozen=True)
class Other:
    """A network of another library.

    Args:
        library: its name.
        name: of the network there.
        make: makes it.
        shape: of an input.
    """

    library: str
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def of_timm(name: str) -> Other:
    """One of timm's, of the size that it is made for."""
    timm = imported("timm")
    size = timm.get_pretrained_cfg(name)
    shape = (3, 224, 224) if size is None else size.input_size
    return Other("timm", name, lambda: timm.create_model(name), (1, *shape))


def of_torchvision(name: str) -> Other:
    """One of torchvision's."""
    models = imported("torchvision.models")
    options = {"init_weights": False} if name == "googlenet" else {}
    return Other("torchvision", name, lambda: models.get_model(name, **options), (1, 3, 224, 224))


def of_transformers(name: str) -> Other:
    """One of transformers', of a small configuration."""
    library = imported("transformers")
    kind, options, shape = TRANSFORMERS[name]

    def make() -> nn.Module:
        stem = kind.removesuffix("Backbone")
        model: nn.Module = getattr(library, f"{kind if kind != stem else kind + 'Model'}")(
            getattr(library, f"{stem}Config")(**options)
        )
        return model

    return Other("transformers", name, make, shape)


def every() -> list[Callable[[], Other]]:
    """All networks, each made when it is asked for."""
    made: list[Callable[[], Other]] = []
    for names, of in (
        (TIMM.split(), of_timm),
        (TORCHVISION.split(), of_torchvision),
        ([*TRANSFORMERS], of_transformers),
    ):
        made += [partial(of, name) for name in names]
    return made


LIBRARIES = ("torch", "timm", "transformers", "torchvision")

# One network --------------------------------------------------------------------------------------


def redrawn(model: nn.Module) -> nn.Module:
    """The model with numbers where a branch, or its bias, starts at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.1)
    return model.eval()


def outputs(result: object) -> list[Tensor]:
    """The tensors of numbers that a model returns."""
    if hasattr(result, "to_tuple"):
        result = result.to_tuple()
    leaves = pytree.tree_leaves(result)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]


@torch.no_grad()
def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference of outputs, relative to the largest output."""
    torch.manual_seed(0)
    wanted = outputs(one(x))
    torch.manual_seed(0)
    found = outputs(other(x))
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise ValueError("outputs have other shapes")
    pairs = zip(wanted, found, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def step_of(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A step of SGD with momentum on two images."""
    images = torch.cat([x, x.flip(-1)])
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        losses = [t.square().mean() for t in outputs(model(images)) if t.requires_grad]
        torch.autograd.backward(losses)
        optimiser.step()

    return step


def row_of(other: Other, device: Device, budget: float) -> Row:
    """Convert a network, and hold it against its original."""
    model = redrawn(other.make())
    x = torch.randn(*other.shape, generator=torch.Generator().manual_seed(0))
    row: dict[str, str] = {"network": other.name, "library": other.library}
    attention, report = convert(model, on_refusal="keep", example=x, report=True)
    reasons = sorted({f"{reason.partition(';')[0]}" for reason in report.left.values()})
    row |= {
        "replaced": str(len(report.replaced)),
        "left": f"{len(report.left)}: " + "; ".join(reasons) if report.left else "0",
        "float32": digits(distance(attention, model, x)),
    }
    row["bytes"] = digits(stored_bytes(attention) / stored_bytes(model))
    both = {"original": model, "converted": attention}
    with torch.no_grad():
        calls = {name: partial(each, x) for name, each in both.items()}
        for call in calls.values():
            call()
        times = interleaved(calls, device, reference="original", budget=budget, most=200)
    row |= {
        "ms": digits(times.milliseconds("original")),
        "forward": digits(times.ratio("converted", "original")),
        "A/A": digits(times.noise("original")),
    }
    try:
        steps = {name: step_of(copy.deepcopy(m).train(), x) for name, m in both.items()}
        for step in steps.values():
            step()
        trained = interleaved(steps, device, reference="original", budget=budget, most=100)
        row |= {
            "step": digits(trained.ratio("converted", "original")),
            "step, A/A": digits(trained.noise("original")),
        }
    except Exception as error:  # of the original too: what it asks for when it is trained
        row |= {"step": "-", "step, A/A": "-"}
        print(f"{other.name}: no step: {error}", file=sys.stderr)
    row["float64"] = "-"
    wide, attention = x.double(), attention.double()
    try:
        with torch.no_grad():
            model.double()(wide)
    except RuntimeError as error:  # the original computes in float32 alone
        print(f"{other.name}: no float64: {error}", file=sys.stderr)
    else:
        row["float64"] = digits(distance(attention, model, wide))
    return row


COLUMNS = (
    *("network", "library", "replaced", "left", "float32", "float64"),
    *("bytes", "ms", "forward", "A/A", "step", "step, A/A"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the networks of others, and print the table or write it among the records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.others", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write the record")
    parser.add_argument("--only", nargs="+", help="names of networks")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for a time")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    started, before, device = datetime.now(UTC), load(), Device()
    device.keep_memory()
    rows, failed = [], []
    for number, make in enumerate(every()):
        other = make()
        if options.only and other.name not in options.only:
            continue
        try:
            rows.append(row_of(other, device, options.budget))
            print(number, *rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
        except Exception as error:
            failed.append(f"{other.library} {other.name}: {type(error).__name__}: {error}")
            print(failed[-1], file=sys.stderr, flush=True)
    text = page(rows, failed, device, started, (before, load()))
    if not options.write:
        print(text, end="")
        return
    path = RECORDS / f"{started:%Y-%m-%d}-networks.md"
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def page(
    rows: Sequence[Row],
    failed: Sequence[str],
    device: Device,
    started: datetime,
    loads: tuple[Load, Load],
) -> str:
    """The record."""

    def ratio(column: str, least: float = 0.0) -> str:
        numbers = sorted(
            float(row[column])
            for row in rows
            if row[column] != "-" and float(row["ms"].replace(",", "")) >= least
        )
        if not numbers:
            return "none"
        return f"median {digits(numbers[len(numbers) // 2])}, largest {digits(numbers[-1])}"

    equal = sum(float(row["float32"]) == 0 for row in rows)
    lines = [
        "# Networks of others",
        "",
        f"- date: {started:%Y-%m-%d %H:%M} UTC",
        f"- {device.describe()}, {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}",
        f"- commit: {commit()}",
        f"- load average before and after (1 minute): {loads[0][0]:.2f}, {loads[1][0]:.2f}",
        "- `python -m benchmarks.others`",
        "",
        '`convert(model, on_refusal="keep", example=x)`, saturated, of networks with random '
        "weights. "
        "*float32* and *float64* are the largest difference of an output, relative to the largest "
        "output. *bytes*, *forward* and *step* are ratios to the original: of what is stored, of a "
        "forward pass of one image in evaluation mode, of which *ms* is the original's, and of a "
        "step of SGD with momentum on two. A/A is the original's to itself.",
        "",
        f"- {len(rows)} networks; float32 outputs equal bit for bit: {equal}",
        f"- forward, of those above 20 ms: {ratio('forward', 20)}; of all: {ratio('forward')}",
        f"- step, of those above 20 ms: {ratio('step', 20)}; of all: {ratio('step')}",
        f"- bytes: {ratio('bytes')}",
        f"- not run: {'; '.join(failed) or 'none'}",
        "",
        table([{column: row[column] for column in COLUMNS} for row in rows]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
