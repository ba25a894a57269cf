"""Logit scales: how large the scores are that saturate softmax, by encoding, image and format.

`python -m tests.pages.logit_scales --write` measures the scores of the encodings of this library,
takes the thresholds from its softmax and the gaps of codes from `theory.tools.spherical_codes`, and
writes `docs/logit-scales.md` with its figure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from flint import arb
from torch import Tensor

from constructions.encodings import Circle, Encoding, Flattened, Periodic, Quadratic, Rotary
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.normalisers import Softmax
from tests.pages.digits import DOWN, UP, number, power
from tests.support.ledger import ROOT
from theory.tools import spherical_codes as codes
from theory.tools.theta import BITS, precision

PAGE = ROOT / "docs" / "logit-scales.md"
FIGURE = ROOT / "docs" / "figures" / "logit-scales.png"

SIDES, KERNELS = (16, 56, 224), (3, 5, 7)

ENCODINGS: Mapping[str, Encoding] = {
    "flattened": Flattened(),
    "quadratic": Quadratic(),
    "periodic": Periodic(),
    "circle": Circle(),
    "rotary": Rotary(),
}
OF_CODE = "code"
CODES: Mapping[int, tuple[int, codes.CodeMaker]] = {
    3: (3, codes.nine_points),
    5: (6, codes.schlaefli),
    7: (7, codes.fifty_six),
}
"""By the side of the kernel: a dimension, and a code of at least as many points as taps."""

FIXED = ("circle", OF_CODE)
"""Encodings whose scores are the same for every image."""


# Measured -----------------------------------------------------------------------------------------


def shifts_of(kernel: int) -> Tensor:
    """The offsets of a square kernel about its query."""
    axis = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    return torch.cartesian_prod(axis, axis)


def scores(encoding: Encoding, side: int, kernel: int) -> Tensor:
    """Every head's score at each displacement between two pixels: (heads, displacements)."""
    axis = torch.arange(1 - side, side, dtype=torch.float64)
    grid = Lattice.box((side, side))
    features, queries = encoding.encode(torch.cartesian_prod(axis, axis), shifts_of(kernel), grid)
    return queries @ features.T


@cache
def spread(name: str, side: int, kernel: int) -> float:
    """The largest difference between two scores of one head, in units of the gap."""
    if name == OF_CODE:
        gram = [row[: kernel**2] for row in CODES[kernel][1]()[: kernel**2]]
        return float((1 - min(map(min, gram))) / codes.gap_of(gram))
    encoding = ENCODINGS[name]
    found = scores(encoding, side, kernel)
    gap = encoding.gap(shifts_of(kernel), Lattice.box((side, side)))
    return (found.amax(dim=1) - found.amin(dim=1)).max().item() / gap


def dimension(name: str) -> int:
    """D_p in two dimensions."""
    one = torch.zeros(1, 2, dtype=torch.float64)
    return int(ENCODINGS[name].encode(one, one, Lattice.box((2, 2)))[0].shape[1])


def threshold(dtype: torch.dtype) -> float:
    """The gap in score from which on softmax is exactly one-hot."""
    return Softmax().one_hot_gap(dtype)


# Codes on the sphere ------------------------------------------------------------------------------


HALF_TURN = 4000
"""Angles are integers, of so many to π."""


def radians(angle: int) -> arb:
    """The angle as a ball."""
    return arb.pi() * angle / HALF_TURN


@cache
def on_parallel(angle: int, latitude: int) -> int:
    """How many points at least an angle apart fit on a parallel, or fewer where a ball leaves it.

    On the equator the quotient is rational.
    """
    if latitude in (0, HALF_TURN):
        return 1
    if 2 * latitude == HALF_TURN:
        return 2 * HALF_TURN // angle
    ratio = (radians(angle) / 2).sin() / radians(latitude).sin()
    if not ratio <= 1:
        return 1
    found = (arb.pi() / ratio.asin()).lower().floor().unique_fmpz()
    assert found is not None
    return int(found)


def parallels(angle: int, first: int) -> Iterator[tuple[int, int]]:
    """Latitudes an angle apart, from a first one, and how many points at that angle fit on each."""
    for latitude in range(first, HALF_TURN + 1, angle):
        yield latitude, on_parallel(angle, latitude)


@cache
def rings() -> tuple[tuple[int, int, int], ...]:
    """Points on parallels of the sphere of R^3: how many, their angle, the first latitude."""
    found = []
    equator = HALF_TURN // 2
    for half in range(1000, 100, -1):
        for first in (0, equator % (2 * half), (equator - half) % (2 * half)):
            found.append((sum(n for _, n in parallels(2 * half, first)), 2 * half, first))
    return tuple(found)


def best_gap(dimension: int, size: int) -> tuple[arb, arb]:
    """The gap of a code, and a bound: the best gap beside other displacements is in between."""
    with precision(BITS):
        most = codes.ceiling(dimension, size, others=True)
        if size <= dimension:
            return most, most
        least = codes.known_gap(dimension, size)
        if dimension >= 3:
            ringed = max((angle for n, angle, _ in rings() if n >= size), default=0)
            least = least.max(1 - radians(ringed).cos())
        return least, most


# The page -----------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its numbers to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_thresholds() -> str:
    """Θ by format, without and with a sink."""
    names = [str(f).removeprefix("torch.") for f in FORMATS]
    gaps = [threshold(f) for f in FORMATS]

    def up(gap: float) -> str:
        return f"{math.ceil(100 * gap) / 100:.2f}"

    return table(
        ["gap in score for one-hot weights", *names],
        [
            ["padded keys, no sink", *(up(g) for g in gaps)],
            ["zeros by a sink, which stands half-way", *(up(2 * g) for g in gaps)],
        ],
    )


def table_of_spreads() -> str:
    """Spread over gap by encoding, image and kernel; and the least that any encoding has."""
    head = ["encoding", "D_p", *(f"{n}², {k} x {k}" for k in KERNELS for n in SIDES)]
    rows = [
        [
            name,
            str(dimension(name)),
            *(power(spread(name, n, k)) for k in KERNELS for n in SIDES),
        ]
        for name in ENCODINGS
    ]
    of_code = [OF_CODE, ", ".join(str(CODES[k][0]) for k in KERNELS)]
    rows.append([*of_code, *(number(spread(OF_CODE, n, k)) for k in KERNELS for n in SIDES)])
    for d in (2, 3):
        floors = [number(least_spread(d, k * k), DOWN) for k in KERNELS for _ in SIDES]
        rows.append(["any, at least", str(d), *floors])
    return table(head, rows)


def least_spread(dimension: int, size: int) -> float:
    """The spread over the gap that an encoding of this dimension has at least."""
    ceiling = codes.ceiling(dimension, size, others=True)
    return float((codes.spread_per_norm(dimension) / ceiling).lower())


def table_of_formats() -> str:
    """The spread that saturates each format, for a 3 x 3 kernel."""
    rows = []
    for name in (*ENCODINGS, OF_CODE):
        for side in SIDES[:1] if name in FIXED else SIDES:
            place = "any image" if name in FIXED else f"{side}²"
            cells = [power(spread(name, side, 3) * threshold(f)) for f in FORMATS]
            rows.append([f"{name}, {place}", *cells])
    return table(["encoding, image", *(str(f).removeprefix("torch.") for f in FORMATS)], rows)


DIMENSIONS = (2, 3, 4, 5, 6, 7, 9, 13, 25)


def table_of_gaps() -> str:
    """The best gap of unit vectors by dimension and number of taps."""
    rows = []
    for d in DIMENSIONS:
        cells = []
        for k in KERNELS:
            least, most = best_gap(d, k * k)
            low, high = math.floor(1000 * least.lower()), math.ceil(1000 * most.upper())
            exact = least.overlaps(most)
            shown = f"{low / 1000:.3f} to {high / 1000:.3f}"
            cells.append(f"{float(least):.3f}" if exact else shown)
        rows.append([str(d), *cells])
    return table(["D", *(f"{k} x {k}" for k in KERNELS)], rows)


KEY_DIMENSIONS = (2, 3, 4, 8, 16, 64)


def table_of_positions() -> str:
    """The norms, over the threshold, that absolute positions need, and that are enough."""
    rows = []
    for n in SIDES:
        cells = []
        for d in KEY_DIMENSIONS:
            with precision(BITS):
                needed = 1 / codes.ceiling(d, n * n)
                enough = 1 / codes.cap_floor(d, n * n).max(codes.known_gap(d, n * n))
                # Balls of 192 bits: their float64 is an integer where they hold one.
                exact = needed.overlaps(enough)
                both = power(float(needed.lower()), DOWN), power(float(enough.upper()), UP)
            cells.append(power(float(needed)) if exact else " to ".join(both))
        rows.append([f"{n}²", *cells])
    return table(["image", *(f"D_k = {d}" for d in KEY_DIMENSIONS)], rows)


def page() -> str:
    """The whole page, computed."""
    return PARTS.format(
        thresholds=table_of_thresholds(),
        spreads=table_of_spreads(),
        formats=table_of_formats(),
        gaps=table_of_gaps(),
        positions=table_of_positions(),
    )


PARTS = """# Logit scales

How large are the scores of a head that selects one shift exactly? Softmax is one-hot in floating point as soon as the target scores higher than every other key by a threshold of the format ([T8](theorems/saturated_softmax_is_one_hot.md)). The encoding decides how far the *other* scores must go for that: [unit encodings have the gap of a spherical code](theorems/unit_encodings_have_the_gap_of_a_spherical_code.md). `python -m tests.pages.logit_scales --write` makes this page and its figure, and a test computes every number again.

![Left: the best gap of unit features against the number of taps, for several dimensions. Right: the spread of the scores that saturates float32 against the side of the image, for each encoding.](figures/logit-scales.png)

## What it means

- For large images the circle, a code and rotary have the smallest scores: they do not grow with the image, or hardly. Those of the quadratic and the periodic encoding grow with the square of the side, those of the flattened one with its fourth power.
- Two dimensions are enough for one shift per head, so the three that the paper asks for are not necessary. On the circle they do well for 3 x 3 kernels. Its gap falls with the square of the number of taps; one, four or five dimensions more buy it back, as a code.
- Half as many dimensions as taps give the gap 1. More hardly help.
- Large scores are no harm where they are exact, as those of the quadratic encoding are in float32 and float64. A kernel that forms scores in float16 ends at 65,504.
- At a finite sharpness look at the leak too: with the circle, a code or rotary many keys score near the runner-up, and the leak grows with the image; with the quadratic and the flattened encoding it does not.
- Keys that carry absolute positions pay for the whole image: see the last table.

## Thresholds

The gap in score from which on the stored weights are exactly one-hot, `Softmax().one_hot_gap(dtype)`.

{thresholds}

## Spread of the scores

The *spread* of a head is its largest score less its smallest, over all displacements between two pixels of a square image. The table has the largest spread of a head over the gap: what the threshold is multiplied with. No change of coordinates of features and queries changes it. The code has nine points in three dimensions, 27 in six and 56 in seven, all other displacements at the centre. The last rows, rounded down, are the bound for encodings of two and three dimensions, [(24)](theorems/unit_encodings_have_the_gap_of_a_spherical_code.md#eq-24).

{spreads}

## To saturate a format

The spread times the threshold, for a 3 x 3 kernel without a sink; with one, twice as much.

{formats}

## The best gap of unit vectors

For features and queries of norm at most 1 in D dimensions, beside other displacements: its value, or between what it lies. The norm of a query times that of a feature is at least the threshold over this number. (In three dimensions the bound is Fejes Tóth's; for 3 x 3 the lower number is known to be the right one.)

{gaps}

## Absolute positions

Keys that carry their position, features of D_k dimensions, and heads that select any pixel of the image: all positions are shifts. The table has the norm of a query times the norm of a key over the threshold: the first number is necessary, rounded down, and the second enough, rounded up; one number is both, rounded.

{positions}
"""  # noqa: E501, one line for each paragraph of the page


# The figure ---------------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart with every kind of colour vision (Okabe and Ito)."""

INK, LINES = "#333333", "#D5DAE0"
DRAWN_SIDES = (8, 12, 16, 24, 32, 56, 80, 112, 160, 224)
MARKERS = "osD^vP"


def save_figure(path: Path) -> None:
    """Draw gaps against taps, and spreads against sides."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    figure = Figure(figsize=(10, 4.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = range(2, 65)
    for d, colour in zip((2, 3, 4, 6), COLOURS, strict=False):
        pairs = [tuple(map(float, best_gap(d, n))) for n in sizes]
        least, most = zip(*pairs, strict=True)
        left.plot(sizes, most, color=colour, linewidth=1, linestyle="--")
        left.plot(sizes, least, color=colour, linewidth=1.8, label=f"{d} dimensions")
        left.fill_between(sizes, least, most, color=colour, alpha=0.12, linewidth=0)
    left.set(xlabel="taps N", ylabel="gap", ylim=(0, 1.6), xlim=(2, 64))
    left.set_title("best gap of unit vectors: a code (line), a bound (dashes)", fontsize=10)
    for k in KERNELS:
        left.axvline(k * k, color=LINES, zorder=0)
        left.text(k * k + 0.6, 1.22, f"{k} x {k}", color=INK, fontsize=8)
    for name, colour, marker in zip((*ENCODINGS, OF_CODE), COLOURS, MARKERS, strict=True):
        values = [spread(name, n, 3) * threshold(torch.float32) for n in DRAWN_SIDES]
        label = f"{name}, D = {3 if name == OF_CODE else dimension(name)}"
        right.plot(DRAWN_SIDES, values, color=colour, marker=marker, markersize=4, label=label)
    right.set(xscale="log", yscale="log", xlabel="side of the image", ylabel="spread of the scores")
    right.set_xticks([8, 16, 32, 56, 112, 224], labels=["8", "16", "32", "56", "112", "224"])
    right.minorticks_off()
    right.set_title("scores that saturate float32, 3 x 3 kernel", fontsize=10)
    for axes in (left, right):
        axes.grid(color=LINES, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        axes.title.set_color(INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, and print the page or write it with its figure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pages.logit_scales", description=main.__doc__
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and its figure")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(), encoding="utf-8")
        save_figure(FIGURE)
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
