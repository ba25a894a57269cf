"""What `convert` did with a network, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROOT = "(the model itself)"
"""How a table names the path of the model, which is empty."""


@dataclass(frozen=True)
class Report:
    """What was replaced in a network, and what was left and why, by path.

    Maximum poolings, normalisations and the like are neither.

    Args:
        replaced: path to what was put there. A module used in two places stands under the first.
        left: path to the reason, for all that is like a convolution and stays what it was. A plain
            attribute stands under the path of its module, and its name.
    """

    replaced: Mapping[str, str]
    left: Mapping[str, str]

    def __str__(self) -> str:
        """A table of both, a line for each path."""
        rows = [("replaced", path or ROOT, text) for path, text in self.replaced.items()]
        rows += [("left", path or ROOT, text) for path, text in self.left.items()]
        wide = max((len(path) for _, path, _ in rows), default=0)
        lines = [f"{kind:8}  {path:{wide}}  {text}" for kind, path, text in rows]
        return "\n".join([f"{len(self.replaced)} replaced, {len(self.left)} left", *lines])

    def warning(self) -> str:
        """What is left, in a sentence or two."""
        paths = list(self.left)
        told = [f"{path or ROOT}: {self.left[path]}" for path in paths[:SHOWN]]
        more = f"; and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        return (
            f"convert left {len(paths)} of the model's convolutions or poolings as they were: "
            f"{'; '.join(told)}{more}. report=True returns the whole list, and does not warn"
        )


SHOWN = 3
"""Paths that a warning names."""
