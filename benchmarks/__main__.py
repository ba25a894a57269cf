"""Run the benchmarks: `python -m benchmarks`, `--write` for the record and the figure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from benchmarks.protocol import ROOT, Device
from benchmarks.record import FIGURE, RECORDS, load, newest_record, page, save_figure
from benchmarks.suite import FULL, SECTIONS, SMALL, Grid, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the record or write it with its figure."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write the record and the figure")
    parser.add_argument("--figure", action="store_true", help="draw the newest record again")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="some of the tables")
    parser.add_argument("--budget", type=float, help="seconds for the rounds of a row")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="small images, to see that all runs")
    size.add_argument("--full", action="store_true", help="the full product of all sizes")
    options = parser.parse_args(given)
    if options.figure:
        save_figure(newest_record().read_text(encoding="utf-8"))
        return
    if options.write and (options.only or options.small):
        parser.error("--write is for a whole run: neither --only nor --small")
    try:
        device = Device(options.device)
    except ValueError as error:
        parser.error(str(error))
    grid = SMALL if options.small else FULL if options.full else Grid()
    if options.budget is not None:
        grid = replace(grid, budget=options.budget)
    device.keep_memory()
    started, before = datetime.now(UTC), load()
    sections = run(device, grid, options.only or tuple(SECTIONS))
    command = " ".join(["python -m benchmarks", *given])
    record = page(sections, device, command=command, started=started, loads=(before, load()))
    if not options.write:
        print(record, end="")
        return
    suffix = "" if device.name == "cpu" else f"-{device.name}"
    path = RECORDS / f"{started:%Y-%m-%d}-benchmarks{suffix}.md"
    path.write_text(record, encoding="utf-8")
    if device.name == "cpu":
        save_figure(record)
        print(f"wrote {FIGURE.relative_to(ROOT)}")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
