"""Soft padding, then the convolution: against the convolution alone and the best dense attention.

    python -m pytest benchmarks

3 x 3, 64 channels, batch 1, float32. All run in turn within each round, in another order each time,
and a ratio is the median over rounds of the ratio within one round. The convolution stands twice in
the round: its ratio to itself (A/A) says how far to trust the others.
"""

from __future__ import annotations

from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks.test_dense import Textbook, convolution, digits, image, seconds
from constructions import assert_equivalent, attention_from_conv

CHANNELS = 64


class HeadByHead(Textbook):
    """The textbook's attention, one head after the other: less memory at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """The sum over heads of softmax(v^T r) X W_val W_out."""
        n, _, height, width = x.shape
        tokens = nn.functional.pad(x, (1, 1, 1, 1)).flatten(2).mT
        rows, columns = torch.arange(-1.0, height + 1), torch.arange(-1.0, width + 1)
        delta = torch.cartesian_prod(rows, columns) - torch.cartesian_prod(
            rows[1:-1], columns[1:-1]
        ).unsqueeze(1)
        r = torch.cat([delta.square().sum(-1, keepdim=True), delta], -1)
        y = self.b_out
        for v, w_val in zip(self.v, self.w_val, strict=True):
            y = y + (r @ v).softmax(-1) @ (tokens @ w_val)
        return y.mT.reshape(n, -1, height, width)


class PadThenConvolve(nn.Module):
    """`F.pad`, then `F.conv2d`: what padding explicitly costs by itself."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of the padded image."""
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


@pytest.mark.parametrize("sharpness", [None, 0.7], ids=["saturated", "0.7"])
@pytest.mark.parametrize(("size", "rounds"), [(64, 7), (224, 21)], ids=["64", "224"])
@torch.no_grad()
def test_forward(
    benchmark: BenchmarkFixture,
    rows: list[dict[str, str]],
    size: int,
    rounds: int,
    sharpness: float | None,
) -> None:
    conv, x = convolution(CHANNELS), image(size, CHANNELS)
    layer = attention_from_conv(conv, sharpness=sharpness)
    assert layer.evaluation == "factored"
    modules: dict[str, nn.Module] = {
        "layer": layer,
        "conv2d": conv,
        "conv2d again": conv,
        "pad, conv2d": PadThenConvolve(conv),
    }
    if size <= 64:  # 90 GB of weights at 224
        of = layer.sharpness
        modules |= {"textbook": Textbook(conv, of), "by head": HeadByHead(conv, of)}
    assert_equivalent(layer, conv, x)
    for module in modules.values():
        module(x)
    order = list(modules)
    times: dict[str, list[float]] = {name: [] for name in modules}

    def one_round() -> None:
        order.append(order.pop(0))
        for name in order:
            times[name].append(seconds(modules[name], x))

    benchmark.pedantic(one_round, rounds=rounds)  # type: ignore[no-untyped-call]

    def ratio(of: str, to: str) -> str:
        if of not in times:
            return ""
        return digits(median(a / b for a, b in zip(times[of], times[to], strict=True)))

    dense = min(("textbook", "by head"), key=lambda name: median(times.get(name, [0.0])))
    row = {
        "image": f"{size}²",
        "sharpness": "saturated" if sharpness is None else f"{sharpness}",
        "layer, ms": digits(1e3 * median(times["layer"])),
        "layer / conv2d": ratio("layer", "conv2d"),
        "layer / (pad, conv2d)": ratio("layer", "pad, conv2d"),
        "A/A": ratio("conv2d again", "conv2d"),
        "best dense / layer": ratio(dense, "layer"),
    }
    benchmark.extra_info.update(row)
    rows.append(row)
