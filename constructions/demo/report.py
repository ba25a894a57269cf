"""What became of a network whose convolutions are attention: each layer, and end to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import certify
from constructions.certificate import Certificate
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import AnyConvolution

IMAGES_AT_A_TIME = 64
"""A dense layer keeps heads x queries x channels numbers for every image."""

COLUMNS = {
    "layer": 7,
    "kernel": 23,
    "heads": 5,
    "one-hot": 9,
    "max error": 9,
    "bound": 8,
    "= leak": 8,
    "+ round.": 8,
    "ratio": 7,
}
WORDS = ("layer", "kernel", "one-hot")
LEGEND = """\
one-hot    the attention weights of all heads and queries; if not, the most that a head spreads
           over keys beside the one it attends to most
max error  |attention - convolution|, the convolution over the reals, over all images and outputs
bound      what the theorem layer_error_is_certified allows: the largest, and its two parts there
ratio      the largest error over bound, every output's error over its own bound"""


@dataclass(frozen=True)
class LayerReport:
    """A convolution, the attention layer in its place, and the certificate on what it received."""

    name: str
    conv: AnyConvolution
    layer: MultiHeadSelfAttention
    received: Tensor
    certificate: Certificate

    def spread(self) -> float | None:
        """The largest weight that a head spreads over keys beside its main one; None if one-hot."""
        weights = self.layer.attention_weights(tuple(self.received.shape[2:])).cpu().double()
        main = F.one_hot(weights.argmax(-1), weights.shape[-1])
        if torch.equal(weights, main.double()):
            return None
        return weights.masked_fill(main.bool(), 0.0).sum(-1).max().item()

    def __str__(self) -> str:
        """The row of the table."""
        spread, certificate = self.spread(), self.certificate
        bound = certificate.bound.flatten()
        largest = int(bound.argmax())
        return row(
            self.name,
            kernel(self.conv),
            str(self.layer.num_heads),
            "yes" if spread is None else f"no, {spread:.0e}",
            f"{float(certificate.error.max()):.2e}",
            f"{float(bound[largest]):.2e}",
            f"{float(certificate.leak.flatten()[largest]):.2e}",
            f"{float(certificate.rounding.flatten()[largest]):.2e}",
            f"{certificate.ratio:.3g}",
        )


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images: `cnn` and `attention` are logits, (N, classes)."""

    cnn: Tensor
    attention: Tensor
    labels: Tensor

    @property
    def difference(self) -> float:
        """The largest difference between two logits."""
        return (self.cnn.double() - self.attention.double()).abs().max().item()

    @property
    def equal(self) -> int:
        """How many images are of the same class to both."""
        return int((self.cnn.argmax(1) == self.attention.argmax(1)).sum())

    def __str__(self) -> str:
        """Three lines."""
        images = len(self.labels)

        def accuracy(logits: Tensor) -> str:
            correct = int((logits.argmax(1) == self.labels).sum())
            return f"{100 * correct / images:.2f} % ({correct} of {images})"

        return (
            f"equal predictions    {self.equal} of {images}, {images - self.equal} changed\n"
            f"largest difference   {self.difference:.2e} of a logit, observed, not bounded\n"
            f"test accuracy        CNN {accuracy(self.cnn)}, attention {accuracy(self.attention)}"
        )


def row(*cells: str) -> str:
    """One line of the table: words to the left, numbers to the right."""
    columns = zip(cells, COLUMNS.items(), strict=True)
    return "  ".join(
        cell.ljust(width) if name in WORDS else cell.rjust(width) for cell, (name, width) in columns
    )


def kernel(conv: AnyConvolution) -> str:
    """The kernel in words, such as `3x3 stride 2`."""
    options = {"stride": max(conv.stride), "dilation": max(conv.dilation), "groups": conv.groups}
    size = "x".join(map(str, conv.kernel_size))
    return " ".join([size, *(f"{name} {n}" for name, n in options.items() if n > 1)])


def certified_layers(
    cnn: nn.Module, attention: nn.Module, received: Mapping[str, Tensor]
) -> Iterator[LayerReport]:
    """Certify the attention layers, one after the other, on what they received."""
    for name, x in received.items():
        layer = cast(MultiHeadSelfAttention, attention.get_submodule(name))
        conv = cast(AnyConvolution, cnn.get_submodule(name))
        parts = [certify(layer, conv, part) for part in torch.split(x, IMAGES_AT_A_TIME)]
        certificate = Certificate(
            error=torch.cat([part.error for part in parts]),
            leak=torch.cat([part.leak for part in parts]),
            rounding=torch.cat([part.rounding for part in parts]),
            conv_error=torch.cat([part.conv_error for part in parts]),
        )
        yield LayerReport(name, conv, layer, x, certificate)


def received_by_layers(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The network's logits, and what each of its attention layers receives on the way."""
    received: dict[str, list[Tensor]] = {}

    def record(name: str, x: Tensor) -> None:
        received.setdefault(name, []).append(x)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: record(name, *inputs))
        for name, module in network.named_modules()
        if isinstance(module, MultiHeadSelfAttention)
    ]
    with torch.no_grad():
        logits = torch.cat([network(part) for part in torch.split(images, IMAGES_AT_A_TIME)])
    for hook in hooks:
        hook.remove()
    return logits, {name: torch.cat(parts) for name, parts in received.items()}


def summary(layers: Sequence[LayerReport]) -> str:
    """How loose the bounds are, where they say nothing, and what torch's own layers err by."""
    certificates = [layer.certificate for layer in layers]
    quotient = torch.cat([c.quotient().flatten() for c in certificates])
    erring = quotient[quotient > 0]
    unbounded = sum(int(c.bound.isinf().sum()) for c in certificates)
    own = max(float(c.conv_error.max()) for c in certificates)
    lines = [f"Of {len(quotient):,} outputs {len(erring):,} err."]
    if len(erring):
        lines += [
            f"The bound is {1 / float(erring.max()):.4g} times the error where it is tightest, and "
            f"{1 / float(erring.median()):.4g} times in the median."
        ]
    if unbounded:
        lines += [
            f"At {unbounded:,} outputs sums may overflow: the bound is inf, and says nothing."
        ]
    lines += [f"For comparison, torch's own convolutions err by up to {own:.2e}."]
    return "\n".join(lines)
