"""What became of a network whose convolutions are attention: each layer, and end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import NetworkCertificate
from constructions.certificate import Certificate
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import AnyConvolution

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
    """A convolution, the attention layer in its place, and the certificate on what it received.

    Args:
        name: the path of both.
        conv: the convolution.
        layer: the attention layer.
        spatial_shape: of the images that they receive.
        certificate: for all of them.
    """

    name: str
    conv: AnyConvolution
    layer: MultiHeadSelfAttention
    spatial_shape: tuple[int, ...]
    certificate: Certificate

    def spread(self) -> float | None:
        """The largest weight that a head spreads over keys beside its main one; None if one-hot."""
        weights = self.layer.attention_weights(self.spatial_shape).cpu().double()
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
    def equal(self) -> int:
        """How many images are of the same class to both."""
        return int((self.cnn.argmax(1) == self.attention.argmax(1)).sum())

    def __str__(self) -> str:
        """Two lines."""
        images = len(self.labels)

        def accuracy(logits: Tensor) -> str:
            correct = int((logits.argmax(1) == self.labels).sum())
            return f"{100 * correct / images:.2f} % ({correct} of {images})"

        return (
            f"equal predictions    {self.equal} of {images}, {images - self.equal} changed\n"
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


def spatial_shapes(network: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Of what each of the network's attention layers receives, by its path."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, x: Tensor) -> None:
        shapes[name] = tuple(x.shape[2:])

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: record(name, *inputs))
        for name, module in network.named_modules()
        if isinstance(module, MultiHeadSelfAttention)
    ]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return shapes


def whole(certificate: NetworkCertificate) -> str:
    """What the layers' certificates say of the logits: two lines, or three with a bound."""

    def largest(numbers: Tensor | None) -> str:
        return "none" if numbers is None else f"{float(numbers.max()):.2e}"

    lines = [
        f"largest difference   {largest(certificate.difference)} of a logit, observed",
        f"to first order       {largest(certificate.estimate)}, an estimate, from errors of layers",
    ]
    bound = certificate.end_to_end
    if bound is not None:
        lines += [f"bound                {largest(bound)}, from bounds of layers"]
    return "\n".join(lines)


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
