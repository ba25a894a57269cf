"""Prints the rows that benchmarks leave as Markdown tables, one for each file."""

from __future__ import annotations

import platform

import pytest
import torch

Rows = list[dict[str, str]]
TABLES = pytest.StashKey[dict[str, Rows]]()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """No workers: what is timed has the machine to itself."""
    return 0


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Rows:
    """The table of the file so far: every row has the same columns."""
    return request.config.stash.setdefault(TABLES, {}).setdefault(request.module.__doc__, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, and the machine that it is of."""
    tables = {k: rows for k, rows in terminalreporter.config.stash.get(TABLES, {}).items() if rows}
    if not tables:
        return
    terminalreporter.section("benchmarks")
    for claim, rows in tables.items():
        terminalreporter.write_line(f"\n{claim.splitlines()[0]}\n")
        table = [list(rows[0]), ["---:"] * len(rows[0]), *(list(row.values()) for row in rows)]
        for line in table:
            terminalreporter.write_line(f"| {' | '.join(line)} |")
    terminalreporter.write_line(
        f"\n{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
