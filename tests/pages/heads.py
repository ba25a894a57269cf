"""How many heads the kernels that people use need: the paper's count and the least.

`python -m tests.pages.heads --write` counts them and writes `docs/heads.md`.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import nn

from constructions import attention_from_conv
from constructions.heads import HeadCount, count, count_heads
from tests.support.ledger import ROOT
from theory.heads_count_the_rank_of_the_kernel import wendel

PAGE = ROOT / "docs" / "heads.md"

Filter = Sequence[int]

ONE = (0, 0, 0, 0, 1, 0, 0, 0, 0)
SHIFT = (0, 0, 0, 0, 0, 1, 0, 0, 0)
BLUR = (1, 2, 1, 2, 4, 2, 1, 2, 1)
SOBEL = (-1, 0, 1, -2, 0, 2, -1, 0, 1), (-1, -2, -1, 0, 0, 0, 1, 2, 1)
PREWITT = (-1, 0, 1, -1, 0, 1, -1, 0, 1), (-1, -1, -1, 0, 0, 0, 1, 1, 1)
LAPLACIAN = (0, 1, 0, 1, -4, 1, 0, 1, 0)
SHARPEN = (0, -1, 0, -1, 5, -1, 0, -1, 0)
OF_CELLS = (1, 2, 1, 2, -12, 2, 1, 2, 1)
RING = (0, 1, 2, 5, 8, 7, 6, 3)
"""The places around the middle, in order."""


def kirsch() -> Iterator[list[int]]:
    """Eight filters: 5, 5, 5 and five times -3 around the middle, turned."""
    around = [5, 5, 5, -3, -3, -3, -3, -3]
    for turn in range(8):
        found = [0] * 9
        for place, value in zip(RING, around[-turn:] + around[:-turn], strict=True):
            found[place] = value
        yield found


FILTERS: Mapping[str, Sequence[Filter]] = {
    "identity": (ONE,),
    "shift by a pixel": (SHIFT,),
    "box": ((1,) * 9,),
    "Gauss (binomial)": (BLUR,),
    "Sobel, one direction": SOBEL[:1],
    "Sobel, both": SOBEL,
    "Prewitt, both": PREWITT,
    "Laplacian": (LAPLACIAN,),
    "sharpen": (SHARPEN,),
    "Roberts, both (2 x 2)": ((1, 0, 0, -1), (0, 1, -1, 0)),
    "Kirsch, all eight": tuple(kirsch()),
    "cellular automata: identity, Sobel x and y": (ONE, *SOBEL),
    "cellular automata, with a Laplacian": (ONE, *SOBEL, OF_CELLS),
}
"""Of one input channel, an output channel for each filter. Those of cellular automata are the
perception filters of Mordvintsev and others (2020), and with the Laplacian that came later."""


def of_filters(filters: Sequence[Filter]) -> nn.Conv2d:
    """The convolution of square filters."""
    side = math.isqrt(len(filters[0]))
    conv = nn.Conv2d(1, len(filters), side, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(filters, dtype=torch.float32).view(conv.weight.shape))
    return conv


def drawn(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with the same random numbers every time."""
    with torch.no_grad():
        conv.weight.copy_(
            torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    return conv


def kernels() -> dict[str, nn.Conv2d]:
    """All rows of the table."""
    return {
        **{name: of_filters(filters) for name, filters in FILTERS.items()},
        "random 5 x 5, one channel": drawn(nn.Conv2d(1, 1, 5)),
        "random 3 x 3, one channel to four": drawn(nn.Conv2d(1, 4, 3)),
        "random 3 x 3, 3 channels to 64": drawn(nn.Conv2d(3, 64, 3)),
        "random 3 x 3, depthwise, 64 channels": drawn(nn.Conv2d(64, 64, 3, groups=64)),
        "random 1 x 1, 64 channels": drawn(nn.Conv2d(64, 64, 1)),
    }


def row(name: str, taps: int, found: HeadCount) -> str:
    """A row of a table of counts."""
    cells = (name, taps, found.rank, f"({found.case})", found.masked, found.masked_limit)
    return f"| {' | '.join(map(str, (*cells, found.finite, found.signed)))} |"


HEAD = """| kernel | paper | rank | case | masked | masked, approximately | finite logits | signed |
| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"""


def table_of_kernels() -> str:
    """The kernels that people use."""
    rows = [row(name, math.prod(k.kernel_size), count(k)) for name, k in kernels().items()]
    return "\n".join([HEAD, *rows])


def table_of_network() -> str:
    """The layers of the main job's network, trained."""
    from constructions.demo.network import Digits, reproducible, train  # needs scikit-learn

    with reproducible(0):
        network = train(Digits.split(0), lambda epoch, loss: None)
    found = count_heads(network)
    rows = [row(f"`{path}`", found.taps[path], found[path]) for path in found]
    return "\n".join([HEAD, *rows, "", FLOORS, "", *floors(network)])


FEWER = (1, 2, 3, 4, 6, 8)

FLOORS = """With fewer heads (`heads=H`): what the best that were found leave of the kernel, as a part of its Frobenius norm; in brackets what no heads of so many can be below, and what some reach, the tails of the singular values from H + 1 and from H on."""  # noqa: E501


def floors(network: nn.Module) -> Iterator[str]:
    """What fewer heads leave of each layer."""
    yield f"| layer | {' | '.join(f'H = {h}' for h in FEWER)} |"
    yield f"| --- |{' ---: |' * len(FEWER)}"
    for path, conv in network.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        kernel = conv.weight.detach().double()
        values = torch.linalg.svdvals(kernel.flatten(2).flatten(0, 1))
        cells = []
        for heads in FEWER:
            if heads >= count(conv).masked:
                cells.append("0")
                continue
            layer = attention_from_conv(conv, heads=heads)
            left = (layer.weight.detach().double() - kernel).norm() / kernel.norm()
            tails = [float(values[n:].norm() / kernel.norm()) for n in (heads, heads - 1)]
            cells.append(f"{float(left):.2f} ({tails[0]:.2f} to {tails[1]:.2f})")
        yield f"| `{path}` | {' | '.join(cells)} |"


DRAWS, TAPS, DIMENSIONS = 60, 9, (1, 2, 3, 4, 5, 6, 8, 9)


@cache
def in_case_a(dimension: int) -> int:
    """Of so many random kernels of nine taps, those for which as many heads as the rank will do."""
    source, found = random.Random(dimension), 0
    for _ in range(DRAWS):
        conv = nn.Conv2d(1, dimension, 3)
        numbers = [source.gauss(0.0, 1.0) for _ in range(conv.weight.numel())]
        with torch.no_grad():
            conv.weight.copy_(torch.tensor(numbers).view(conv.weight.shape))
        found += count(conv).case == "a"
    return found


def table_of_chances() -> str:
    """Wendel's formula beside a count."""
    lines = [f"| D | Wendel | counted, of {DRAWS} |", "| ---: | ---: | ---: |"]
    for dimension in DIMENSIONS:
        chance = float(wendel(TAPS, dimension))
        lines.append(f"| {dimension} | {chance:.3f} | {in_case_a(dimension)} |")
    return "\n".join(lines)


BEGIN, END = "<!-- trained: begin -->", "<!-- trained: end -->"


def page(trained: str) -> str:
    """The whole page, counted; the table of the trained network is given."""
    return PARTS.format(
        kernels=table_of_kernels(),
        chances=table_of_chances(),
        trained=trained,
        begin=BEGIN,
        end=END,
    )


PARTS = """# How many heads

The paper's Theorem 1 says that $N_h = K^2$ heads express a $K \\times K$ convolution, one for each tap. That is sufficient. What is necessary is the rank of the taps, and sometimes one more ([T10](theorems/heads_count_the_rank_of_the_kernel.md)). `heads.count(conv)` says how many, with a proof in fractions; `attention_from_conv(conv, heads="minimal")` builds them. `python -m tests.pages.heads --write` makes this page, and a test counts every row again.

| | the paper, Theorem 1 | here, T10 |
| --- | --- | --- |
| says | $K^2$ heads suffice | $r$ or $r + 1$ heads are necessary and sufficient |
| a head | looks at one pixel | has its own weights at the taps |
| attention | one-hot, in a limit | masked to the window, or with all logits finite and exact |
| matrices | $W_\\delta$ | found from all $W_\\delta$ |
| borders | zero padding by a sink, replicate, circular | explicit keys, none, or circular |

## Kernels that people use

Filters of one input channel have an output channel each. *Masked* heads see the window alone. *Approximately* is the number that comes arbitrarily close; in case (b) its matrices then grow without bound. *Signed* heads are differences of two softmaxes. A number that is larger than the paper's is one of finite logits: a head for each tap, of finite logits, is never exact.

{kernels}

Kernels of several channels in and out are generic, and then the paper's count is the least: nine taps in nine dimensions or more are independent. What has few heads is what was designed: filters, and kernels that were truncated to a rank.

## Random kernels

Nine independent random taps in $D = D_{{\\mathrm{{in}}}} D_{{\\mathrm{{out}}}}$ dimensions: the chance that as many masked heads as the rank suffice, by [Wendel's formula](theorems/heads_count_the_rank_of_the_kernel.md#eq-24), and what a count of drawn kernels finds.

{chances}

## A trained network

The layers of the [main job](main-job.md), trained with seed 0.

{begin}

{trained}

{end}

## Narrow heads

All of these heads apply any matrix. Of heads of dimension $D_h$ below the channels', which may mix taps, the least number is not known: `heads.count(conv, head_dim=D_h)` has a `lower` and an `upper` for it ([T11](theorems/head_dimension_is_block_term_rank.md)), masked or with finite logits.

## A network of yours

```python
from torch import nn

from constructions.heads import count_heads

network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 8, 3))
print(count_heads(network))  # a line for each convolution, and the sums
```
"""  # noqa: E501, one line for each paragraph of the page


def trained_part(text: str) -> str:
    """The table of the trained network on a page."""
    return text.partition(f"{BEGIN}\n\n")[2].partition(f"\n\n{END}")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print the page or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.pages.heads", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    text = page(table_of_network()) if parser.parse_args(arguments).write else page("")
    if parser.parse_args(arguments).write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
