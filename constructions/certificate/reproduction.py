"""Reproductions: code to paste that makes a failing case again."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn

from constructions.matrix_units import IMAGES_TRANSFORMED, may_transform
from constructions.sources import CONVOLUTIONS, AnySource

PAGE = "docs/theorems/layer_error_is_certified.md"

LONGEST = 600
"""Characters of numbers that are printed; more are kept in a file."""

LONGEST_LAYER = 400
"""Characters that a layer may be described in."""

TRANSFORMED = (
    "Without oneDNN (torch.backends.mkldnn.enabled) torch hands convolutions of 16 images and more "
    "to NNPACK, whose transforms are no sums of products: no bound covers them. If that is what "
    "fails, it passes within torch.backends.nnpack.flags(enabled=False).\n"
)

OPTIONS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)


def where_to_read(layer: nn.Module, conv: AnySource, x: Tensor, *, transforms: bool) -> str:
    """How a message ends: theorem and page, the layer, and what makes the case again.

    Args:
        layer: that failed.
        conv: what it was held against.
        x: their input.
        transforms: whether the layer may have asked torch for a transformed convolution.
    """
    warning = transforms and may_transform(IMAGES_TRANSFORMED, x.dtype, x.device.type)
    described = str(layer)
    if len(described) > LONGEST_LAYER:
        described = f"{described[:LONGEST_LAYER].rstrip()} ..."
    return (
        f"{TRANSFORMED if warning else ''}"
        f"Theorem: layer_error_is_certified, {PAGE}\nlayer: {described}\n{reproduction(conv, x)}"
    )


def reproduction(conv: AnySource, x: Tensor) -> str:
    """Code that makes a convolution or pooling and its input, and compares them with attention."""
    options = {name: getattr(conv, name) for name in OPTIONS if hasattr(conv, name)}
    if isinstance(conv, CONVOLUTIONS):
        options["bias"] = conv.bias is not None
        if conv.transposed:
            options["output_padding"] = conv.output_padding
        options["dtype"] = conv.weight.dtype
    call = ", ".join(f"{name}={value!r}" for name, value in options.items())
    tensors = {**conv.state_dict(), "x": x.detach()}
    # A number takes two characters at least, so that not all of many are written to be counted.
    rows = []
    if 2 * sum(t.numel() for t in tensors.values()) <= LONGEST:
        rows = [f"{n!r}: torch.tensor({t.tolist()}, dtype=wide)" for n, t in tensors.items()]
    if not rows or sum(map(len, rows)) > LONGEST:
        with tempfile.NamedTemporaryFile(suffix=".pt", delete=False) as file:
            torch.save(tensors, file)
        values = f"tensors = torch.load({file.name!r})"
    else:
        values = "wide = torch.float64\ntensors = {" + ", ".join(rows) + "}"
    return (
        "To reproduce, with your module as `layer`:\n"
        "import torch\n"
        "from constructions import assert_equivalent\n"
        f"conv = torch.nn.{type(conv).__name__}({call})\n"
        f"{values}\n"
        f"x = tensors.pop('x').reshape({tuple(x.shape)}).to({x.dtype})\n"
        "conv.load_state_dict(tensors)\n"
        "assert_equivalent(layer, conv, x)\n"
    )
