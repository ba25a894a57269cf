"""The options of torch's convolutions: small layers that have them, and how often each was checked.

`python -m tests.pages.options --write` compares attention with the oracle, bit for bit on integers,
for a fixed run of drawn convolutions, and writes how many comparisons each option had, in each
dimension and padding mode, to `docs/options.md`.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import filled, integers
from tests.support.ledger import ROOT
from tests.support.oracle import Exact, convolve_module, exact_error, numbers
from tests.support.strategies import (
    CONVOLUTIONS,
    PADDING_MODES,
    TRANSPOSED,
    Case,
    Convolution,
    integer_cases,
)

PAGE = ROOT / "docs" / "options.md"


# Layers against the oracle ------------------------------------------------------------------------


def ways(conv: Convolution) -> Iterator[dict[str, Any]]:
    """With the natural border and with padded keys, dense and factored: the options of a layer."""
    borders = ("padded",) if conv.padding_mode == "reflect" else ("natural", "padded")
    for boundary, evaluation in itertools.product(borders, ("dense", "factored")):
        yield {"boundary": boundary, "evaluation": evaluation}


def layers(conv: Convolution) -> Iterator[MultiHeadSelfAttention]:
    """The layers of a convolution, one for each way."""
    for way in ways(conv):
        yield attention_from_conv(conv, **way)


def truth_of(case: Case) -> Exact:
    """The exact convolution."""
    return convolve_module(case.conv, case.x, case.output_size)


def agrees(module: nn.Module, case: Case, truth: Exact) -> bool:
    """Whether the module returns these numbers, bit for bit up to the sign of zero."""
    with torch.no_grad():
        y = numbers(case.run(module))
    return y.shape == truth.shape and not exact_error(y, truth).any()


# Small convolutions of integers, by their options -------------------------------------------------

KERNEL, STRIDE = (2, 3, 2), (2, 3, 2)


def conv_of(
    rank: int,
    *,
    kernel: Sequence[int] = KERNEL,
    sizes: tuple[int, int] = (2, 3),
    transposed: bool = False,
    **options: Any,
) -> Convolution:
    """A convolution in float64 with these channels; options for three axes are cut to the rank."""
    kind: Any = (TRANSPOSED if transposed else CONVOLUTIONS)[rank - 1]
    cut_off = {n: v[:rank] if isinstance(v, tuple) else v for n, v in options.items()}
    with torch.random.fork_rng(devices=[]):
        conv = kind(*sizes, tuple(kernel[:rank]), **cut_off, dtype=torch.float64)
    found: Convolution = filled(conv)
    return found


def image_of(rank: int, channels: int = 2, sizes: Sequence[int] | None = None) -> Tensor:
    """A small image of integers, no two axes alike."""
    shape = sizes or {1: (7,), 2: (5, 4), 3: (3, 4, 2)}[rank]
    return integers(1, channels, *shape[:rank], dtype=torch.float64)


def attended(conv: Convolution, x: Tensor, **call: Any) -> Tensor:
    """What attention computes in place of the convolution."""
    with torch.no_grad():
        y: Tensor = attention_from_conv(conv)(x, **call)
    return y


def around(x: Tensor, low: Sequence[int], high: Sequence[int], mode: str = "zeros") -> Tensor:
    """The image with so many more pixels before and after, continued by torch."""
    sides = itertools.chain(*reversed(list(zip(low, high, strict=True))))
    return F.pad(x, list(sides), mode="constant" if mode == "zeros" else mode)


def cut(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first pixels of an image."""
    index: tuple[Any, ...] = (..., *(slice(n) for n in sizes))
    return x[index]


# The matrix of the page ---------------------------------------------------------------------------

Column = tuple[type[Convolution], str]
COLUMNS: tuple[Column, ...] = (
    *itertools.product(CONVOLUTIONS, PADDING_MODES),
    *((layer, "zeros") for layer in TRANSPOSED),
)
ROUND, LEAST, MOST = 12, 2, 100
"""Drawn convolutions in a round, and rounds for each column: until every row has been met."""


def _reach(case: Case) -> list[int]:
    conv = case.conv
    return [r * (k - 1) for r, k in zip(conv.dilation, conv.kernel_size, strict=True)]


def _pixels(case: Case) -> Sequence[int]:
    return case.x.shape[-len(case.conv.kernel_size) :]


def _padding(case: Case) -> Sequence[int]:
    return (0,) if isinstance(case.conv.padding, str) else case.conv.padding


ROWS: Mapping[str, Callable[[Case], bool]] = {
    "`kernel_size` even": lambda case: any(k % 2 == 0 for k in case.conv.kernel_size),
    "`kernel_size` unequal": lambda case: len(set(case.conv.kernel_size)) > 1,
    "`stride` above 1": lambda case: max(case.conv.stride) > 1,
    "`dilation` above 1": lambda case: any(
        r > 1 and k > 1 for r, k in zip(case.conv.dilation, case.conv.kernel_size, strict=True)
    ),
    "`groups` above 1": lambda case: case.conv.groups > 1,
    "`bias=True`": lambda case: case.conv.bias is not None,
    "`bias=False`": lambda case: case.conv.bias is None,
    "`padding` of integers": lambda case: max(_padding(case)) > 0,
    '`padding="same"`': lambda case: case.conv.padding == "same" and max(_reach(case)) > 0,
    '`padding="valid"`': lambda case: case.conv.padding == "valid",
    "`output_padding`": lambda case: case.output_size is None and max(case.conv.output_padding) > 0,
    "`output_size`": lambda case: case.output_size is not None,
    "unbatched input": lambda case: case.x.dim() == len(case.conv.kernel_size) + 1,
    "one pixel on an axis": lambda case: min(_pixels(case)) == 1,
    "kernel beyond the image": lambda case: any(
        reach >= n for reach, n in zip(_reach(case), _pixels(case), strict=True)
    ),
    "padding as wide as the image": lambda case: (
        not (case.conv.transposed or isinstance(case.conv.padding, str))
        and any(p >= n for p, n in zip(case.conv.padding, _pixels(case), strict=True))
    ),
    "all": lambda case: True,
}
"""What is counted, and when a call counts."""


def is_possible(row: str, column: Column) -> bool:
    """Whether torch has the option in this dimension and mode."""
    layer, mode = column
    transposed = layer in TRANSPOSED
    one_axis = layer in (nn.Conv1d, nn.ConvTranspose1d)
    return {
        "`kernel_size` unequal": not one_axis,
        '`padding="same"`': not transposed,
        '`padding="valid"`': not transposed,
        "`output_padding`": transposed,
        "`output_size`": transposed,
        "padding as wide as the image": not transposed and mode != "reflect",
    }.get(row, True)


def tally(column: Column, log: Callable[[], None] = lambda: None) -> Counter[str]:
    """Compare for one column, and count the comparisons of each row; the same ones at every call.

    Args:
        column: the layer and its padding mode.
        log: is called once for each comparison.

    Raises:
        AssertionError: a layer and the oracle differ, or a row is never met.
    """
    counts: Counter[str] = Counter()

    def compare(case: Case) -> None:
        truth = truth_of(case)
        for layer in layers(case.conv):
            assert agrees(layer, case, truth), (layer, case)
            counts.update(row for row, holds in ROWS.items() if holds(case))
            log()

    possible = {row for row in ROWS if is_possible(row, column)}
    kind, mode = column
    cases = integer_cases(torch.float32, [kind], [mode])
    for number in range(MOST):
        seed(f"{kind.__name__} {mode} {number}")(FIXED(given(case=cases)(compare)))()
        if number + 1 >= LEAST and possible <= counts.keys():
            return counts
    raise AssertionError(f"{column} never had {possible - counts.keys()}")


FIXED = settings(
    max_examples=ROUND,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""One round of Hypothesis, its randomness from the seed alone."""


def page(counts: Mapping[Column, Mapping[str, int]]) -> str:
    """The page with these counts."""
    parts = [HEAD]
    for dimension in (1, 2, 3):
        columns = [c for c in COLUMNS if c[0].__name__.endswith(f"{dimension}d")]
        titles = [f"`{mode}`" if layer in CONVOLUTIONS else "transposed" for layer, mode in columns]
        lines = [
            f"## {dimension}-D",
            "",
            f"| | {' | '.join(titles)} |",
            f"|---|{'---:|' * len(titles)}",
        ]
        for row in ROWS:
            cells = [
                f"{counts[column].get(row, 0):,}" if is_possible(row, column) else "—"
                for column in columns
            ]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


HEAD = """# Options

What each option of torch's convolutions is to attention, the theorem [hyperparameters are lattices and offsets](theorems/hyperparameters_are_lattices_and_offsets.md) says. This page counts what was run: how many times a layer with the option was compared with the exact convolution of the same integers, and agreed bit for bit.

The convolutions are drawn, all options at once, until every row of a column has been met. Each is computed in float32 with the natural border and with padded keys, dense and factored (in the last two ways for `reflect`, which has no natural border), and counts in every row whose option it has. A dash says that torch has no such option, or refuses it. `python -m tests.pages.options --write` makes this page; its tests make the run again, and the ledger counts it."""  # noqa: E501, one line for each paragraph of the page


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print the page or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.pages.options", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/options.md")
    options = parser.parse_args(arguments)
    text = page({column: tally(column) for column in COLUMNS})
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
