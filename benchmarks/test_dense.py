"""Dense attention against the convolution it expresses, and against attention as in a textbook.

    python -m pytest benchmarks

Time: the three run in turn within each round, in another order each time, and a ratio is the median
over rounds of the ratio within one round; what else the machine does then falls on all alike.

Memory: the growth of the resident set at its peak during one forward pass, in a process of its own
that has run a smaller image before, as Linux counts it (VmHWM, reset before the pass).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv

ROOT = Path(__file__).parent.parent
ROUNDS = {16: 24, 32: 12, 64: 6}


class Textbook(nn.Module):
    """Multi-head attention with quadratic scores, each formula written down as it stands."""

    def __init__(self, conv: nn.Conv2d, sharpness: float) -> None:
        super().__init__()
        taps = torch.arange(-1.0, 2.0)
        shifts = torch.cartesian_prod(taps, taps)
        self.v = sharpness * torch.cat([-torch.ones(9, 1), 2 * shifts], -1)
        self.w_val = conv.weight.detach().flatten(2).permute(2, 1, 0)  # (heads, in, out)
        self.w_out = torch.eye(conv.out_channels).repeat(9, 1)
        self.b_out = conv.get_parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        """softmax(v^T r) X W_val for each head, side by side, times W_out."""
        n, _, height, width = x.shape
        tokens = nn.functional.pad(x, (1, 1, 1, 1)).flatten(2).mT
        rows, columns = torch.arange(-1.0, height + 1), torch.arange(-1.0, width + 1)
        keys = torch.cartesian_prod(rows, columns)
        queries = torch.cartesian_prod(rows[1:-1], columns[1:-1])
        delta = keys - queries[:, None]
        r = torch.cat([delta.square().sum(-1, keepdim=True), delta], -1)
        weights = torch.einsum("hp,qkp->hqk", self.v, r).softmax(-1)
        heads = weights @ (tokens[:, None] @ self.w_val)
        y: Tensor = heads.transpose(1, 2).flatten(2) @ self.w_out + self.b_out
        return y.mT.reshape(n, -1, height, width)


def convolution(channels: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 3, padding=1)


def contenders(conv: nn.Conv2d) -> dict[str, nn.Module]:
    layer = attention_from_conv(conv, boundary="padded", evaluation="dense")
    return {"conv2d": conv, "layer": layer, "textbook": Textbook(conv, layer.sharpness)}


def image(size: int, channels: int) -> Tensor:
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1))


def seconds(module: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    module(x)
    return time.perf_counter() - start


@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("size", ROUNDS)
@torch.no_grad()
def test_forward(
    benchmark: BenchmarkFixture, rows: list[dict[str, str]], size: int, channels: int
) -> None:
    conv, x = convolution(channels), image(size, channels)
    modules = contenders(conv)
    for module in modules.values():  # which also warms them up
        assert_equivalent(module, conv, x)
    order = list(modules)
    times: dict[str, list[float]] = {name: [] for name in modules}

    def one_round() -> None:
        order.append(order.pop(0))
        for name in order:
            times[name].append(seconds(modules[name], x))

    benchmark.pedantic(one_round, rounds=ROUNDS[size])  # type: ignore[no-untyped-call]

    def ratio(of: str, to: str) -> float:
        return median(a / b for a, b in zip(times[of], times[to], strict=True))

    row = {"image": f"{size}²", "channels": f"{channels}"}
    row |= {f"{name}, ms": digits(1e3 * median(times[name])) for name in modules}
    row |= {f"layer / {name}": digits(ratio("layer", name)) for name in ("conv2d", "textbook")}
    row |= {f"{name}, MiB": f"{peak_of(name, size, channels):,.0f}" for name in modules}
    benchmark.extra_info.update(row)
    rows.append(row)


def digits(number: float) -> str:
    """Three digits, none of them lost to an exponent."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def peak_of(name: str, size: int, channels: int) -> float:
    """Peak memory of a forward pass, measured in a fresh process; NaN where Linux is not."""
    if sys.platform != "linux":
        return float("nan")
    command = [sys.executable, "-m", __name__, name, str(size), str(channels)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


@torch.no_grad()
def print_peak(name: str, size: str, channels: str) -> None:
    """What `peak_of` runs: MiB by which the resident set grows at most."""

    def mebibytes(entry: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 1024

    module = contenders(convolution(int(channels)))[name]
    x = image(int(size), int(channels))
    module(x[..., :8, :8])  # what torch sets up once
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = mebibytes("VmRSS")
    module(x)
    print(mebibytes("VmHWM") - before)


if __name__ == "__main__":
    print_peak(*sys.argv[1:])
