"""The story of the main job, from the data to the verdict, told on the standard output."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import torch
from matplotlib.figure import Figure

from constructions import Certificate, certify_layers, convert
from constructions.demo.network import EPOCHS, Digits, reproducible, train
from constructions.demo.report import (
    COLUMNS,
    LEGEND,
    Comparison,
    LayerReport,
    row,
    spatial_shapes,
    summary,
    whole,
)
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.plotting import heads
from constructions.sources import AnyConvolution


def run(
    *,
    device: torch.device,
    dtype: torch.dtype,
    sharpness: float | None,
    evaluation: str,
    output: Path,
    seed: int,
) -> bool:
    """Train a CNN, replace its convolutions by attention, certify each layer and draw the first.

    Args:
        device: where both networks run once trained.
        dtype: the format of both networks once trained.
        sharpness: as `attention_from_conv` takes it.
        evaluation: as `attention_from_conv` takes it.
        output: an existing folder, for the figure.
        seed: of the split and the training.

    Returns:
        Whether every error is within its bound.
    """
    with reproducible(seed):
        start = time.perf_counter()
        digits = Digits.split(seed)
        say(
            f"Training a CNN on {len(digits.training_labels)} handwritten digits, seed {seed}, "
            "float32 on the CPU."
        )
        cnn = train(digits, show_epoch).to(device, dtype)
        trained = time.perf_counter()

        attention = convert(cnn, sharpness=sharpness, evaluation=evaluation)
        images = digits.test_images.to(device, dtype)
        layer = next(m for m in attention.modules() if isinstance(m, MultiHeadSelfAttention))
        gap = f"{'saturated, ' if sharpness is None else ''}sharpness {layer.sharpness:.4g}"
        form = (
            f"{layer.evaluation} attention, {gap}, {str(dtype).removeprefix('torch.')} on {device}"
        )
        say(
            f"\nEvery convolution becomes {form}.\n"
            f"Certificates of the layers on what they receive in the attention network, for all "
            f"{len(images)} test images:\n\n{row(*COLUMNS)}"
        )
        shapes = spatial_shapes(attention, images[:1])
        layers: list[LayerReport] = []

        def certified_layer(name: str, certificate: Certificate) -> None:
            conv = cast(AnyConvolution, cnn.get_submodule(name))
            layer = cast(MultiHeadSelfAttention, attention.get_submodule(name))
            layers.append(LayerReport(name, conv, layer, shapes[name], certificate))
            say(str(layers[-1]))

        network = certify_layers(attention, cnn, images, progress=certified_layer)
        say(f"\n{LEGEND}\n\n{summary(layers)}")

        with torch.no_grad():
            logits = cnn(images).cpu(), attention(images).cpu()
        comparison = Comparison(*logits, digits.test_labels)
        say(f"\nEnd to end, CNN against attention network:\n\n{comparison}\n{whole(network)}")
        certified = time.perf_counter()

        first = layers[0]
        path = output / "heads.png"
        figure = Figure(figsize=(10, 6.3), dpi=120, layout="constrained")
        figure.suptitle(
            "Attention expresses convolution (Theorem 1): one head for each tap\n"
            f'layer "{first.name}" of a trained CNN: {form}',
            fontsize=13,
        )
        heads(first.layer, digits.test_images[0], figure=figure)
        figure.savefig(path, metadata={"Software": None})
        say(
            f"\nFigure of the heads: {path}\n"
            f"Time: training {trained - start:.1f} s, certificates {certified - trained:.1f} s, "
            f"figure {time.perf_counter() - certified:.1f} s."
        )
        failed = network.failing
        say(
            f"FAILED: an error exceeds its bound in {', '.join(failed)}."
            if failed
            else "Every error is within its bound."
        )
        return not failed


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def show_epoch(epoch: int, loss: float) -> None:
    """Tell of every fifth epoch."""
    if epoch % 5 == 0:
        say(f"  epoch {epoch:2} of {EPOCHS}: loss {loss:.4f}")
