"""The dictionary of T6, from torch's options to lattices and offsets: read from its page, and held.

The table of `docs/theorems/hyperparameters_are_lattices_and_offsets.md` has formulas for one axis.
Here they are read from the page and evaluated; `differences_from_torch` asks torch itself, with
numbered pixels, `differences_from_stencil` the construction. Both list what they find, so that they
can be tested on wrong tables.
"""

from __future__ import annotations

import functools
import math
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.geometry.padding_modes import padded
from constructions.layer.structure import products
from constructions.sources import stencil_of
from tests.support.oracle import numbers
from tests.support.strategies import Case, Convolution

Pooling: TypeAlias = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
POOLINGS: tuple[type[Pooling], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


HEADING = "### The dictionary"
FUNCTIONS = {"abs": abs, "len": len, "max": max, "min": min, "range": range}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        options: torch's options that it is about, each with a letter or with a value.
        columns: For each kind of layer formulas by name; none where it has no such option.
        accepted: What torch asks for.
    """

    options: Mapping[str, str]
    columns: tuple[Mapping[str, str], ...]
    accepted: str

    def is_about(self, given: Mapping[str, Any]) -> bool:
        """Whether a call with these options has the value, or for a letter has any number."""
        for name, value in self.options.items():
            if value.startswith('"') or value in ("True", "False"):
                if str(given[name]) != value.strip('"'):
                    return False
            elif given[name] is None or isinstance(given[name], str):
                return False
        return True


class Axis(dict[str, Any]):
    """One axis of one call: the letters of the table, and its formulas on them."""

    def __init__(
        self, formulas: Mapping[str, str], conditions: Sequence[str], letters: Mapping[str, Any]
    ) -> None:
        """A formula for a letter counts more than what the convolution stores."""
        super().__init__({name: value for name, value in letters.items() if name not in formulas})
        self.formulas = formulas
        self.conditions = conditions

    def __missing__(self, name: str) -> Any:
        if name not in self.formulas:
            raise KeyError(name)
        self[name] = evaluated(self.formulas[name], self)
        return self[name]

    def at(self, name: str, **indices: int) -> Any:
        """The formula at an index."""
        return evaluated(self.formulas[name], ChainMap(indices, self))

    @property
    def is_accepted(self) -> bool:
        """Whether every condition holds."""
        return all(evaluated(condition, self) for condition in self.conditions)


def evaluated(formula: str, letters: Any) -> Any:
    """A formula of the table, which is Python."""
    return eval(compiled(formula), {"__builtins__": FUNCTIONS}, letters)


@functools.cache
def compiled(formula: str) -> Any:
    return compile(formula, "<the dictionary>", "eval")


@dataclass(frozen=True)
class Table:
    """A table of the page; `read` both, the one for convolutions and the one for poolings."""

    rows: tuple[Row, ...]

    @classmethod
    def read(cls, page: str) -> tuple[Table, Table]:
        """The two tables under the heading: header and rule, then the rows."""
        section = page.partition(HEADING)[2].partition("\n## ")[0]
        convolution, pooling = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
        return cls._of(convolution), cls._of(pooling)

    @classmethod
    def _of(cls, text: str) -> Table:
        lines = [line.strip("|").split("|") for line in text.splitlines()[2:]]
        return cls(tuple(cls._row([_code(cell) for cell in cells]) for cells in lines))

    @staticmethod
    def _row(cells: Sequence[list[str]]) -> Row:
        options, _, *columns, (condition,) = cells
        return Row(
            dict(option.split("=", 1) for option in options),
            tuple(dict(formula.split(" = ", 1) for formula in column) for column in columns),
            condition,
        )

    def axes(self, case: Case) -> list[Axis]:
        """The formulas on every axis of a call of a convolution."""
        conv, sizes = case.conv, pixels_of(case)
        given = {**vars(conv), "bias": conv.bias, "output_size": case.output_size}
        shared: dict[str, Any] = {"g": conv.groups}
        shared |= {"C_in": conv.in_channels, "C_out": conv.out_channels}
        shared |= {} if conv.bias is None else {"b": conv.bias.tolist()}
        letters = {
            "n": sizes,
            "k": conv.kernel_size,
            "s": conv.stride,
            "r": conv.dilation,
            "p": conv.padding,
            "e": conv.output_padding,
            "L": case.output_size and case.output_size[-len(sizes) :],
        }
        return self._axes(int(conv.transposed), given, letters, shared, len(sizes))

    def axes_of_pooling(self, pool: Pooling, sizes: Sequence[int]) -> list[Axis]:
        """The formulas on every axis of a call of an average pooling."""
        d = len(sizes)
        given = {"divisor_override": None, **vars(pool)}
        window, stride, padding = (
            (option,) * d if isinstance(option, int) else tuple(option)
            for option in (pool.kernel_size, pool.stride, pool.padding)
        )
        shared = {"d": d, "v": math.prod(window), "D": given["divisor_override"]}
        letters = {"n": sizes, "w": window, "s": stride, "p": padding}
        return self._axes(0, given, letters, shared, d)

    def _axes(
        self,
        column: int,
        given: Mapping[str, Any],
        letters: Mapping[str, Any],
        shared: Mapping[str, Any],
        dimension: int,
    ) -> list[Axis]:
        said = [row for row in self.rows if row.is_about(given) and row.columns[column]]
        formulas = {name: text for row in said for name, text in row.columns[column].items()}
        conditions = [row.accepted for row in said]
        per_axis = {name: v for name, v in letters.items() if isinstance(v, tuple | list)}
        return [
            Axis(formulas, conditions, {**shared, **{n: v[a] for n, v in per_axis.items()}})
            for a in range(dimension)
        ]


def _code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def pixels_of(case: Case) -> tuple[int, ...]:
    """The spatial shape of the image."""
    return tuple(case.x.shape[-len(case.conv.kernel_size) :])


def numbered(sizes: Sequence[int]) -> Tensor:
    """An image of one channel whose pixels are 1, 2, 3, ...: no two alike, none zero."""
    count = torch.arange(1, 1 + math.prod(sizes), dtype=torch.float64)
    return count.reshape(1, 1, *sizes)


# Which pixel does each tap show to each output? ---------------------------------------------------


def shown_by_table(axes: Sequence[Axis]) -> NDArray[np.int64]:
    """The number of the pixel, 0 for none: (taps, outputs), both row-major."""
    d = len(axes)
    total, there = np.zeros((1,) * (2 * d), dtype=np.int64), np.array(True)
    for a, axis in enumerate(axes):
        offsets = [axis.at("offset", j=j) for j in range(axis["taps"])]
        queries = [axis.at("query", o=o) for o in range(axis["outputs"])]
        shown = [[axis.at("shown", t=q + offset) for q in queries] for offset in offsets]
        index = np.array([[-1 if i is None else i for i in row] for row in shown])
        shape = [1] * (2 * d)
        shape[a], shape[d + a] = index.shape
        total = total * axis["n"] + index.reshape(shape)
        there = there & (index >= 0).reshape(shape)
    numbers_shown = np.where(there, total + 1, 0)
    return numbers_shown.reshape(math.prod(numbers_shown.shape[:d]), -1)


def shown_by_torch(case: Case) -> NDArray[np.int64]:
    """The same, seen on numbered pixels: one output channel for each tap, its kernel one-hot."""
    conv, taps = case.conv, math.prod(case.conv.kernel_size)
    names = ["stride", "padding", "dilation"]
    names += ["output_padding"] if conv.transposed else ["padding_mode"]
    probe = unbiased(conv, 1, taps, conv.kernel_size, **{n: getattr(conv, n) for n in names})
    with torch.no_grad():
        probe.weight.copy_(torch.eye(taps).reshape(probe.weight.shape))
        y = numbers(Case(probe, numbered(pixels_of(case)), spatial_size(case)).run(probe))
    return y.astype(np.int64).reshape(taps, -1)


def unbiased(conv: Convolution, *sizes: Any, **options: Any) -> Convolution:
    """Another convolution of the same class, in float64 and without bias."""
    kind: Any = type(conv)
    with torch.random.fork_rng(devices=[]):
        found: Convolution = kind(*sizes, bias=False, dtype=torch.float64, **options)
    return found


def spatial_size(case: Case) -> list[int] | None:
    """The output_size of a call without batch and channels."""
    return None if case.output_size is None else case.output_size[-len(case.conv.kernel_size) :]


# The table against torch, and against the construction --------------------------------------------


def differences_from_torch(table: Table, case: Case) -> list[str]:
    """What the table says of a call otherwise than torch does."""
    conv, axes = case.conv, table.axes(case)
    with torch.no_grad():
        nothing = conv.weight.new_zeros(1, conv.in_channels, *pixels_of(case))
        constant = Case(conv, nothing, spatial_size(case)).run(conv)[0]
        probe = unbiased(conv, conv.in_channels, conv.out_channels, 1, groups=conv.groups)
        nn.init.ones_(probe.weight)
        one_channel_each = torch.eye(conv.in_channels, dtype=torch.float64)
        mixed = probe(one_channel_each.reshape(-1, conv.in_channels, *(1 for _ in axes)))
    if tuple(constant.shape[1:]) != tuple(axis["outputs"] for axis in axes):
        return ["the number of outputs"]
    channels = range(conv.in_channels), range(conv.out_channels)
    meet = [[axes[0].at("meet", c=c, m=m) for m in channels[1]] for c in channels[0]]
    biases = [{0 if conv.bias is None else axes[0].at("at_zeros", m=m)} for m in channels[1]]
    stand = [[axis.at("shown", t=axis.at("pixel", i=i)) for i in range(axis["n"])] for axis in axes]
    checks = {
        "whether it is accepted": all(axis.is_accepted for axis in axes),
        "which channels meet": mixed.flatten(1).tolist() == meet,
        "what an image of zeros becomes": biases == [set(y.flatten().tolist()) for y in constant],
        "where the pixels stand": stand == [list(range(axis["n"])) for axis in axes],
        "which pixels are shown": np.array_equal(shown_by_table(axes), shown_by_torch(case)),
    }
    return [name for name, holds in checks.items() if not holds]


def differences_from_stencil(table: Table, case: Case) -> list[str]:
    """What the table says of a call otherwise than the construction reads it."""
    conv, axes, sizes = case.conv, table.axes(case), pixels_of(case)
    stencil = stencil_of(conv)
    geometry = stencil.geometry
    if case.output_size is not None:
        geometry = geometry.with_output_size(sizes, case.output_size)
    queries, pixels = geometry.queries(sizes), geometry.pixels(sizes)
    targets = geometry.targets(sizes)

    found: dict[str, bool] = {}
    for a, axis in enumerate(axes):
        asked = [axis.at("query", o=o) for o in range(axis["outputs"])]
        stand = [axis.at("pixel", i=i) for i in range(axis["n"])]
        ends = (-axis["low"], stand[-1] + axis["high"])
        line = padded(numbered(sizes[a : a + 1]), pixels.axis(a), targets.axis(a), stencil.border)
        shown = [axis.at("shown", t=t) for t in targets.axes()[a].tolist()]
        found[f"the queries of axis {a}"] = queries.axes()[a].tolist() == asked
        found[f"the pixels of axis {a}"] = pixels.axes()[a].tolist() == stand
        found[f"the targets of axis {a}"] = (targets.origin[a], targets.last[a]) == ends
        found[f"the border of axis {a}"] = line.flatten().tolist() == [
            0 if i is None else i + 1 for i in shown
        ]
    blocks = conv.weight.detach().reshape(conv.groups, -1, *conv.weight.shape[1:])
    matrices = {}
    for index in product(*(range(axis["taps"]) for axis in axes)):
        offset = tuple(axis.at("offset", j=j) for axis, j in zip(axes, index, strict=True))
        block = blocks.flatten(3)[..., np.ravel_multi_index(index, conv.kernel_size)]
        matrices[offset] = block if conv.transposed else block.mT
    read = dict(zip(map(tuple, stencil.offsets.tolist()), stencil.matrices, strict=True))
    found["the offsets"] = read.keys() == matrices.keys()
    found["the matrices"] = found["the offsets"] and all(
        torch.equal(read[offset], matrix) for offset, matrix in matrices.items()
    )
    ones = torch.ones_like(stencil.matrices[0])
    dense: Tensor = torch.block_diag(*ones)  # type: ignore[no-untyped-call]
    channels = range(conv.in_channels), range(conv.out_channels)
    meet = [[axes[0].at("meet", c=c, m=m) for m in channels[1]] for c in channels[0]]
    found["the size of a matrix"] = tuple(dense.shape) == axes[0]["sizes"]
    found["the blocks"] = dense.tolist() == meet
    if stencil.bias is not None:
        biases = [axes[0].at("at_zeros", m=m) for m in channels[1]]
        found["the bias"] = stencil.bias.tolist() == biases
    return [name for name, holds in found.items() if not holds]


# Average pooling ----------------------------------------------------------------------------------


def differences_from_pooling(table: Table, pool: Pooling, sizes: Sequence[int]) -> list[str]:
    """What the table says of a pooling otherwise than torch does, or than its attention layer.

    Torch pools images of a single pixel of value 1, which shows the windows and the divisors.
    """
    axes = table.axes_of_pooling(pool, sizes)
    count = math.prod(sizes)
    images = torch.eye(count, dtype=torch.float64).reshape(count, 1, *sizes)
    pooled = pool(images)
    if tuple(pooled.shape[2:]) != tuple(axis["outputs"] for axis in axes):
        return ["the number of outputs"]
    layer = attention_from_conv(pool)
    weights = numbers(layer.attention_weights(sizes)[0])
    queries = [axis.tolist() for axis in layer.geometry.queries(tuple(sizes)).axes()]
    where = layer.geometry.pixels if layer.boundary == "natural" else layer.geometry.explicit_keys

    indices = list(product(*(range(axis["outputs"]) for axis in axes)))
    windows, keys = (
        [[axis.at(name, o=o) for axis, o in zip(axes, at, strict=True)] for at in indices]
        for name in ("window", "keys")
    )
    scale = axes[0]["scale"]
    shares = np.array([math.prod(map(len, ranges)) for ranges in keys])
    pixels, grid = _members(keys, [range(n) for n in sizes]), where(tuple(sizes)).axes()
    by_torch = numbers(pooled).reshape(count, -1).T
    on_keys = _members(keys, [line.tolist() for line in grid])
    checks = {
        "whether it is accepted": all(axis.is_accepted for axis in axes),
        "which pixels torch pools": np.array_equal(by_torch != 0, pixels),
        "what torch divides by": np.array_equal(
            # A divisor is an integer, and small: its rounded inverse tells it.
            np.rint(1 / by_torch[pixels]),
            np.rint((shares / scale)[:, None] + 0 * by_torch)[pixels],
        ),
        "the window": all(
            set(part) <= set(whole)
            for ranges in zip(keys, windows, strict=True)
            for part, whole in zip(*ranges, strict=True)
        ),
        "where the queries stand": queries
        == [[axis.at("query", o=o) for o in range(axis["outputs"])] for axis in axes],
        "where the first query stands": [line[0] for line in queries] == [a["first"] for a in axes],
        "which keys share": np.array_equal(weights > 0, on_keys),
        "how they share": all(
            len(set(row[there])) == 1 and np.rint(1 / row[there][0]) == share
            for row, there, share in zip(weights, on_keys, shares, strict=True)
        ),
        "the matrix": products(layer.heads, torch.float32).item() == np.float32(scale),
    }
    return [name for name, holds in checks.items() if not holds]


def _members(
    keys: Sequence[Sequence[range]], positions: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Whether each position of a grid, row-major, is in each product of ranges."""
    rows = []
    for ranges in keys:
        inside = np.array(True)
        for part, line in zip(ranges, positions, strict=True):
            inside = np.logical_and.outer(inside, [at in part for at in line])
        rows.append(inside.reshape(-1))
    return np.array(rows)
