"""Prints the rows that benchmarks leave as one Markdown table."""

from __future__ import annotations

import platform

import pytest
import torch

ROWS = pytest.StashKey[list[dict[str, str]]]()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """No workers: what is timed has the machine to itself."""
    return 0


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> list[dict[str, str]]:
    """The table so far: every row has the same columns."""
    return pytestconfig.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, and the machine that it is of."""
    rows = terminalreporter.config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("benchmarks")
    table = [list(rows[0]), ["---:"] * len(rows[0]), *(list(row.values()) for row in rows)]
    for line in table:
        terminalreporter.write_line(f"| {' | '.join(line)} |")
    terminalreporter.write_line(
        f"\n{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
