"""Depth: how many heads one layer, two layers and the best number of layers take for a kernel.

`python -m tests.pages.depth --write` plans the layers of square kernels of every odd side, and
writes `docs/depth.md` with its figure.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from torch import nn

from constructions.heads.stacked import plan
from constructions.sources import stencil_of
from tests.support.ledger import ROOT
from theory.depth_buys_heads import least_heads

PAGE = ROOT / "docs" / "depth.md"
FIGURE = ROOT / "docs" / "figures" / "depth.png"

SIDES = (3, 5, 7, 9, 11, 13, 15, 21, 27, 31, 63)
DRAWN = range(3, 65, 2)
MOST = 12
"""Layers that are tried: no side here takes more of them with fewer heads."""

OWN, PADDED = "auto", "padded"


@cache
def heads(side: int, depth: int, boundary: str = OWN) -> int:
    """The heads of all layers together for a square kernel in the middle of its padding."""
    if depth == 1:
        return side**2
    stencil = stencil_of(nn.Conv2d(1, 1, side, padding=side // 2, device="meta"))
    return sum(plan(stencil, depth, boundary).heads)


@cache
def best(side: int, boundary: str) -> tuple[int, int]:
    """The fewest heads, and the fewest layers that have them."""
    return min((heads(side, depth, boundary), depth) for depth in range(1, MOST + 1))


def rows() -> list[list[str]]:
    """One for each side."""
    found = []
    for side in SIDES:
        told = [f"{n} in {layers}" for n, layers in (best(side, OWN), best(side, PADDED))]
        least = least_heads(side**2)
        counts = [str(heads(side, depth)) for depth in (1, 2)]
        found.append([f"{side} x {side}", *counts, *told, str(least)])
    return found


def page() -> str:
    """The whole page, computed."""
    head = ["kernel", "one layer", "two layers", "own grid", "padded grid", "at least"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows()]
    return PAGE_TEXT.format(table="\n".join(f"| {' | '.join(line)} |" for line in lines))


PAGE_TEXT = """# Depth

How many heads does a kernel take? One layer has a head for each tap. Heads multiply over layers and shifts add, so several layers have fewer of them: [depth buys heads](theorems/depth_buys_heads.md). `python -m tests.pages.depth --write` makes this page and its figure, and a test computes every number again.

![Heads of all layers together against the side of a square kernel: one layer, two layers, and the best number of layers on the image's own grid and on the padded one, with the least that any number of layers needs.](figures/depth.png)

Square kernels in the middle of their padding, heads of all layers together. *Own grid*: `attention_from_conv(conv, depth=...)` with the best depth, on the image's own tokens, for zeros, replicate and circular borders. *Padded grid*: the same with `boundary="padded"`, for every border. *At least*: what layers of any number need for a kernel whose tap matrices are independent, [(11)](theorems/depth_buys_heads.md#eq-11).

{table}

Fewer heads ask for more width: the channels between two layers are the rank of the kernel's unfolding there, for a kernel without structure the smaller of the taps so far times D_in and the taps to come times D_out.
"""  # noqa: E501, one line for each paragraph of the page


# The figure ---------------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Told apart with every kind of colour vision (Okabe and Ito)."""


def save_figure(path: Path) -> None:
    """Draw heads against sides."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    curves = {
        "one layer": [heads(side, 1) for side in DRAWN],
        "two layers": [heads(side, 2) for side in DRAWN],
        "best depth, own grid": [best(side, OWN)[0] for side in DRAWN],
        "best depth, padded grid": [best(side, PADDED)[0] for side in DRAWN],
    }
    for (name, values), colour in zip(curves.items(), COLOURS, strict=True):
        axes.plot(DRAWN, values, color=colour, label=name, drawstyle="steps-mid")
    least = [least_heads(side**2) for side in DRAWN]
    axes.plot(DRAWN, least, color="#333333", linestyle=":", label="at least", drawstyle="steps-mid")
    axes.set(xscale="log", yscale="log", xlabel="side of the kernel", ylabel="heads, all layers")
    axes.set_xticks([3, 5, 9, 15, 27, 63], ["3", "5", "9", "15", "27", "63"])
    axes.minorticks_off()
    axes.grid(color="#D5DAE0", linewidth=0.6)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Write the page and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write the page and its figure")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
        save_figure(FIGURE)
    else:
        print(page())


if __name__ == "__main__":
    main()
