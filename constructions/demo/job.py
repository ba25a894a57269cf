"""The story of the main job, from the data to the verdict, told on the standard output."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from constructions import convert
from constructions.demo.network import EPOCHS, Digits, reproducible, train
from constructions.demo.report import (
    COLUMNS,
    LEGEND,
    Comparison,
    certified_layers,
    received_by_layers,
    row,
    summary,
)
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.plotting import heads


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
        logits, received = received_by_layers(attention, images)
        layers = []
        for report in certified_layers(cnn, attention, received):
            say(str(report))
            layers.append(report)
        say(f"\n{LEGEND}\n\n{summary(layers)}")

        with torch.no_grad():
            comparison = Comparison(cnn(images).cpu(), logits.cpu(), digits.test_labels)
        say(f"\nEnd to end, CNN against attention network:\n\n{comparison}")
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
        failed = [report.name for report in layers if not report.certificate.holds]
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
