"""Run the experiments: `python -m experiments`, `--write` for the record and the figures."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from experiments import record
from experiments.studies import SMOKE, Effort, compare, find_offsets, little_data

ROOT = Path(__file__).parent.parent
RECORDS, FIGURES = ROOT / "docs" / "records", ROOT / "docs" / "figures"
CENTRES, CURVE = FIGURES / "experiments-centres.png", FIGURES / "experiments-little-data.png"

STUDIES = ("comparison", "offsets", "little-data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the record or write it with its figures."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m experiments", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write the record and the figures")
    parser.add_argument("--only", nargs="+", choices=STUDIES, help="some of the studies")
    parser.add_argument("--seeds", type=int, help="of the comparison and of little data")
    parser.add_argument("--smoke", action="store_true", help="hardly trained, to see that all runs")
    options = parser.parse_args(given)
    if options.write and options.smoke:
        parser.error("--write is for a real run: no --smoke")
    effort = SMOKE if options.smoke else Effort()
    if options.seeds is not None:
        if options.seeds < 2:
            parser.error("--seeds is at least 2, for an interval")
        effort = replace(effort, seeds=options.seeds)
    chosen, start = tuple(options.only or STUDIES), datetime.now(UTC)
    parts = [
        f"# Experiments, {start:%Y-%m-%d}",
        f"`{' '.join(['python -m experiments', *given])}`, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, one thread. {effort.seeds} seeds "
        f"({effort.starts} for the offsets), ± is half of a 95 % interval over them. "
        "[What was asked](../experiments.md).",
    ]
    threads, clock = torch.get_num_threads(), time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - clock:6.0f} s] {line}", file=sys.stderr, flush=True)

    torch.set_num_threads(1)  # the same sums, however many cores there are
    try:
        with torch.random.fork_rng(devices=[]):
            if "comparison" in chosen:
                comparison = compare(effort, say)
                parts += ["## The paper's comparison", record.of_comparison(comparison)]
                if options.write:
                    record.save_centres(comparison, CENTRES)
            if "offsets" in chosen:
                parts += ["## Do centres find the offsets?"]
                parts += [record.of_offsets(find_offsets(effort, say))]
            if "little-data" in chosen:
                little = little_data(effort, say)
                parts += ["## Little data", record.of_little_data(little)]
                if options.write:
                    record.save_little_data(little, CURVE)
    finally:
        torch.set_num_threads(threads)
    parts.append(f"Took {(time.perf_counter() - clock) / 60:.1f} minutes.")
    text = "\n\n".join(parts) + "\n"
    if not options.write:
        print(text, end="")
        return
    part = "" if chosen == STUDIES else "-" + "-".join(chosen)
    path = RECORDS / f"{start:%Y-%m-%d}-experiments{part}.md"
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
