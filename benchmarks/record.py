"""A run as a dated page, and its figure: time over tokens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.protocol import ROOT, Device, table
from benchmarks.suite import Section

RECORDS = ROOT / "docs" / "records"
FIGURE = ROOT / "docs" / "figures" / "speed.png"

Load = tuple[float, float, float]


def page(
    sections: Sequence[Section],
    device: Device,
    *,
    command: str,
    started: datetime,
    loads: tuple[Load, Load],
) -> str:
    """The whole record."""
    minutes = (datetime.now(UTC) - started).total_seconds() / 60
    lines = [
        "# Benchmarks",
        "",
        f"- date: {started:%Y-%m-%d %H:%M} UTC, {minutes:.1f} minutes",
        f"- {device.describe()}, torch {torch.__version__}, batch 1",
        f"- commit: {commit()}",
        f"- load average before and after (1 minute): {loads[0][0]:.2f}, {loads[1][0]:.2f}",
        f"- `{command}`",
        "",
        "Ratios are medians of paired ratios within one run; A/A is the reference against itself, "
        "the noise. A dash stands for what was not run.",
    ]
    targets = [target.row for section in sections for target in section.targets]
    if targets:
        lines += ["", "## Targets", "", table(targets)]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text]
        if section.rows:
            lines += ["", table(section.rows)]
    return "\n".join(lines) + "\n"


def commit() -> str:
    """What was run; changed files are said to be."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "constructions") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def load() -> Load:
    """What else the machine does."""
    return os.getloadavg()


def newest_record() -> Path:
    """The record with the latest date."""
    return max(RECORDS.glob("*-benchmarks*.md"))


# The figure ---------------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with every kind of colour vision (Okabe and Ito)."""

INK, LINES = "#333333", "#D5DAE0"
MARKERS = "osD^vPXd*<>"


def growth_in(record: str) -> dict[str, list[tuple[int, float]]]:
    """The table of growth in a record: tokens and milliseconds of each contender.

    A table with several modes has the first of them.
    """
    _, _, after = record.partition("\n## Growth\n")
    rows = [line for line in after.partition("\n## ")[0].splitlines() if line.startswith("|")]
    if not rows:
        raise ValueError("the record has no table of growth")
    head, _, *body = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    found: dict[str, list[tuple[int, float]]] = {}
    for name, *cells in body:
        pairs = zip(head[1:], cells, strict=True)
        numbers = [(n.replace(",", ""), ms.replace(",", "")) for n, ms in pairs if ms != "-"]
        points = [(int(n), float(ms)) for n, ms in numbers if n.isdecimal()]
        found.setdefault(name, points)
    return {name: points for name, points in found.items() if points}


def save_figure(record: str, path: Path = FIGURE) -> None:
    """Draw time over tokens, a line for each contender."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    figure = Figure(figsize=(8, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    lines = growth_in(record)
    for number, (name, points) in enumerate(lines.items()):
        tokens, milliseconds = zip(*points, strict=True)
        style = "-" if max(tokens) == max(n for p in lines.values() for n, _ in p) else "--"
        axes.plot(
            tokens,
            milliseconds,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.5,
            linestyle=style,
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds")
    axes.set_title(
        "a forward pass, 64 channels, 3 x 3; dashed: stopped where weights no longer fit",
        fontsize=10,
        color=INK,
    )
    axes.grid(color=LINES, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
