"""The record of a run: tables in Markdown, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from experiments.measures import Interval
from experiments.mixers import HEADS
from experiments.studies import LITTLE, Comparison, Found

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart with every kind of colour vision (Okabe and Ito)."""


def percent(interval: Interval) -> str:
    """A share with its interval, in per cent."""
    half = "" if math.isnan(interval.half) else f" ± {100 * interval.half:.1f}"
    return f"{100 * interval.centre:.1f}{half}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its numbers to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_comparison(comparison: Comparison) -> str:
    """Accuracies, paired with the convolution's; and what the quadratic layers are."""
    base = [trained.accuracy for trained in comparison.arms["convolution"]]
    rows = []
    for name, seeds in comparison.arms.items():
        own = [trained.accuracy for trained in seeds]
        paired = [a - b for a, b in zip(own, base, strict=True)]
        needed = [n for trained in seeds for n in trained.needed]
        rows.append(
            [
                name,
                percent(Interval.of(own)),
                "" if name == "convolution" else percent(Interval.of(paired)),
                f"{mean(needed):.1f}" if needed else "",
            ]
        )
    head = ["", "accuracy, %", "less the convolution's", f"heads of {HEADS} for a floor of 10 %"]
    layers = [low for trained in comparison.arms["quadratic"] for low in trained.lowerings]
    second = [
        ["largest error over certified bound", f"{max(low.ratio for low in layers):.2g}"],
        [
            "distance to the convolution at the nearest pixels",
            f"{100 * median(low.distance for low in layers):.0f} % "
            f"({100 * min(low.distance for low in layers):.0f} to "
            f"{100 * max(low.distance for low in layers):.0f})",
        ],
        [
            "weight at the nearest pixel",
            f"{100 * median(low.on_target for low in layers):.0f} % "
            f"({100 * min(low.on_target for low in layers):.0f} to "
            f"{100 * max(low.on_target for low in layers):.0f})",
        ],
        [f"different pixels of {HEADS} heads", f"{mean(low.taps for low in layers):.1f}"],
    ]
    epochs = ", ".join(
        f"{n}" if reached >= comparison.goal else f"{n} (not reached)"
        for n, reached in zip(comparison.epochs, base, strict=True)
    )
    return "\n\n".join(
        [
            f"Epochs until the convolution told {100 * comparison.goal:.0f} % of the test images "
            f"right, by seed: {epochs}.",
            table(head, rows),
            "Heads that see their window alone: how many the convolution at the nearest pixels "
            "takes, and what H heads cannot be below, in per cent of the kernel's norm (means over "
            "layers and seeds):",
            of_prunings(comparison),
            "The trained quadratic layers (median, least and largest over layers and seeds):",
            table(["", ""], second),
        ]
    )


FEWER = (8, 6, 4, 3, 2, 1)


def of_prunings(comparison: Comparison) -> str:
    """T10's count of what was trained, and the floor of fewer heads."""
    rows = []
    for name, seeds in comparison.arms.items():
        found = [pruning for trained in seeds for pruning in trained.prunings]
        if not found:
            continue
        # Of taps that are fewer than the heads nothing is left.
        left = [mean(p.floors[n] if n < len(p.floors) else 0.0 for p in found) for n in FEWER]
        masked = f"{mean(pruning.masked for pruning in found):.1f}"
        rows.append([name, masked, *(f"{100 * share:.0f}" for share in left)])
    return table(["", "heads, exactly", *(f"H = {n}" for n in FEWER)], rows)


def of_little_data(found: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """Accuracies by number of training images."""
    sizes = list(found[LITTLE[0]])
    rows = [[name, *(percent(Interval.of(found[name][n])) for n in sizes)] for name in LITTLE]
    for name in LITTLE[1:]:
        pairs = [
            [a - b for a, b in zip(found[name][n], found[LITTLE[0]][n], strict=True)] for n in sizes
        ]
        rows.append([f"{name}, less", *(percent(Interval.of(pair)) for pair in pairs)])
    return table(["training images", *map(str, sizes)], rows)


def of_offsets(found: Mapping[float, Sequence[Found]]) -> str:
    """How many offsets were found, by the sharpness at the start."""
    rows = [
        [
            f"{sharpness:g}",
            f"{mean(f.offsets for f in seeds):.1f} ({min(f.offsets for f in seeds)} to "
            f"{max(f.offsets for f in seeds)})",
            str(sum(f.offsets == HEADS for f in seeds)) + f" of {len(seeds)}",
            f"{median(f.error for f in seeds):.2g}",
            f"{median(f.sharpness for f in seeds):.2g}",
        ]
        for sharpness, seeds in found.items()
    ]
    head = ["sharpness at the start", "offsets found, of 9", "seeds that found all"]
    return table([*head, "error, of the output's variance", "sharpness at the end"], rows)


def save_centres(comparison: Comparison, path: Path) -> None:
    """Draw where the centres of the first seed's quadratic layers went, epoch by epoch."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    history = comparison.arms["quadratic"][0].centres
    assert history is not None
    layers = history.shape[1]
    figure = Figure(figsize=(4.6 * layers, 4.4), dpi=110, layout="constrained")
    for layer, axes in enumerate(figure.subplots(1, layers, squeeze=False)[0]):
        for head in range(history.shape[2]):
            rows, columns = history[:, layer, head].unbind(1)
            colour = COLOURS[head % len(COLOURS)]
            axes.plot(columns, rows, color=colour, linewidth=1, alpha=0.7)
            axes.plot(columns[0], rows[0], "o", color=colour, markersize=4, fillstyle="none")
            axes.plot(columns[-1], rows[-1], "o", color=colour, markersize=6)
        axes.set(title=f"layer {layer + 1}", xlabel="columns", ylabel="rows", aspect="equal")
        axes.set_xticks(range(-3, 4))
        axes.set_yticks(range(-3, 4))
        axes.grid(color="#D5DAE0", linewidth=0.5)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def save_little_data(found: Mapping[str, Mapping[int, Sequence[float]]], path: Path) -> None:
    """Draw accuracy against the number of training images, with intervals."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, colour, marker in zip(LITTLE, COLOURS, "osD", strict=False):
        sizes = list(found[name])
        intervals = [Interval.of(found[name][n]) for n in sizes]
        axes.errorbar(
            sizes,
            [100 * i.centre for i in intervals],
            yerr=[100 * i.half for i in intervals],
            color=colour,
            marker=marker,
            markersize=4,
            capsize=3,
            label=name,
        )
    axes.set(xscale="log", xlabel="training images", ylabel="test accuracy, %")
    sizes = list(found[LITTLE[0]])
    axes.set_xticks(sizes, labels=[str(n) for n in sizes])
    axes.minorticks_off()
    axes.grid(color="#D5DAE0", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
