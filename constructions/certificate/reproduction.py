"""Reproductions: code to paste that makes a failing case again."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

from constructions.sources import CONVOLUTIONS, AnySource

LARGEST = 2000
"""Numbers that are printed; more are kept in a file."""

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
    if sum(t.numel() for t in tensors.values()) > LARGEST:
        with tempfile.NamedTemporaryFile(suffix=".pt", delete=False) as file:
            torch.save(tensors, file)
        values = f"tensors = torch.load({file.name!r})"
    else:
        rows = [f"{n!r}: torch.tensor({t.tolist()}, dtype=wide)" for n, t in tensors.items()]
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
