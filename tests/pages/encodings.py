"""Every encoding with every normaliser: what it says of itself, and how often each was checked.

`python -m tests.pages.encodings --write` compares attention with the oracle for a fixed run of
drawn convolutions, for each pair, and writes `docs/encodings.md`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from constructions import attention_from_conv, certify
from constructions.encodings import ENCODINGS, Mixing
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.normalisers import NORMALISERS
from constructions.sources.convolutions import geometry_of
from tests.pages.digits import DOWN, number
from tests.pages.options import FIXED, agrees, truth_of
from tests.support.ledger import ROOT
from tests.support.strategies import LAYERS, PADDING_MODES, Case, integer_cases

PAGE = ROOT / "docs" / "encodings.md"
PAIRS = list(itertools.product(ENCODINGS, NORMALISERS))
Pair = tuple[str, str]


# What is refused, and why -------------------------------------------------------------------------


def refusal(pair: Pair, case: Case) -> str | None:
    """What the error must name where a pair cannot express a convolution, or None."""
    encoding, _ = pair
    offsets = geometry_of(case.conv).offsets()
    if not is_built(pair):
        return "softmax"
    if encoding == "t5":
        if offsets.shape[1] > 1:
            return "one dimension"
        return "tables_select_the_shifts_they_tell_apart" if int(offsets.abs().max()) > 7 else None
    if encoding == "causal_alibi" and offsets.shape[1] > 1:
        return "in one dimension"
    if encoding in ("alibi", "causal_alibi"):
        return "ties_cannot_express_convolution" if offsets.any() else None
    return None


# Layers against the oracle ------------------------------------------------------------------------


def cases(pair: Pair) -> st.SearchStrategy[Case]:
    """Convolutions of integers in every format, all options drawn at once.

    Small kernels among them, which those allow that select few shifts.
    """
    return st.sampled_from(FORMATS).flatmap(
        lambda dtype: integer_cases(dtype, LAYERS, PADDING_MODES)
    )


def layers(pair: Pair, conv: Any) -> Iterator[MultiHeadSelfAttention]:
    """With the border of choice and with padded keys, dense and as the layer chooses."""
    encoding, normaliser = pair
    for boundary, evaluation in itertools.product(("auto", "padded"), ("dense", "auto")):
        layer = attention_from_conv(
            conv,
            encoding=encoding,
            normaliser=normaliser,
            boundary=boundary,
            evaluation=evaluation,
        )
        if evaluation == "dense" or layer.evaluation != "dense":
            yield layer


def check(pair: Pair, case: Case, log: Callable[..., None]) -> int:
    """Hold all layers of a pair against the exact convolution; the number of comparisons.

    Raises:
        AssertionError: a layer differs, or the pair is refused without its reason.
    """
    reason = refusal(pair, case)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            attention_from_conv(case.conv, encoding=pair[0], normaliser=pair[1])
        return 0
    truth, done = truth_of(case), 0
    for layer in layers(pair, case.conv):
        if isinstance(layer.encoding, Mixing):
            if layer.boundary == "natural" and _taps_meet(case):
                with pytest.raises(ValueError, match="boundary='padded'"):
                    case.run(layer)
                continue
            certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
            assert certificate.holds, (layer, case, certificate)
            log(ratio=certificate.ratio, dtype=case.x.dtype)
        else:
            assert agrees(layer, case, truth), (layer, case)
            log(dtype=case.x.dtype)
        done += 1
    return done


def _taps_meet(case: Case) -> bool:
    """Whether two taps see one pixel of the torus."""
    offsets = geometry_of(case.conv).offsets()
    sizes = torch.tensor(case.x.shape[-offsets.shape[1] :])
    return len({tuple(row) for row in offsets.remainder(sizes).tolist()}) < len(offsets)


def is_built(pair: Pair) -> bool:
    """Whether an encoding comes with a normaliser at all."""
    return pair[0] != "scalar" or pair[1] == "softmax"


FEW = settings(FIXED, max_examples=4)
"""The convolutions of a fixed run; more where all are refused."""


def tally(pair: Pair, log: Callable[..., None] = lambda **_: None) -> int:
    """How many comparisons a fixed run of drawn convolutions has; each is logged."""
    done = 0
    if not is_built(pair):
        return done

    def compare(case: Case) -> None:
        nonlocal done
        done += check(pair, case, log)

    number = 0
    while number < 1 or (done == 0 and number < 100):
        seed(f"{' '.join(pair)} {number}")(FEW(given(case=cases(pair))(compare)))()
        number += 1
    return done


# The page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What the page says of an encoding beside what the code says.

    Attributes:
        score: of a head of shift Δ at displacement δ, for sharpness over gap 1.
        gap: its formula.
    """

    score: str
    gap: str


ROWS: Mapping[str, Row] = {
    "quadratic": Row(r"$-\lVert\delta-\Delta\rVert^2$", "1"),
    "periodic": Row(r"$\sum_i \cos(2\pi(\delta_i-\Delta_i)/n_i)$", r"$1-\cos(2\pi/n)$"),
    "absolute_quadratic": Row(r"$-\lVert k-(q+\Delta)\rVert^2+\lVert q+\Delta\rVert^2$", "1"),
    "gaussian": Row(
        r"$-(\delta-\Delta)^{\mathsf T}\Lambda(\delta-\Delta)$",
        r"$\min_{e \in \mathbb Z^d \setminus 0} e^{\mathsf T}\Lambda e$",
    ),
    "flattened": Row(r"$-(t_\delta-t_\Delta)^2$, $t$ in mixed radix", "1"),
    "circle": Row(
        r"$\cos(\varphi_\delta-\varphi_\Delta)$ on the kernel's $N$ offsets, else 0",
        r"$\min(1, 1-\cos(2\pi/N))$",
    ),
    "bias_table": Row(r"$[\delta=\Delta]$", "1"),
    "row_column": Row(r"$\sum_i [\delta_i=\Delta_i]$", "1"),
    "t5": Row(r"$[\mathrm{bucket}(\delta)=\mathrm{bucket}(\Delta)]$", "1"),
    "rotary": Row(
        r"$\sum_i \sum_f \cos \theta_f(\delta_i-\Delta_i)$",
        r"$\min_n \sum_f (1-\cos \theta_f n)$",
    ),
    "sinusoidal": Row(
        r"$\sum_i \sum_f \cos \theta_f(k_i-(q_i+\Delta_i))$",
        r"$\min_n \sum_f (1-\cos \theta_f n)$",
    ),
    "alibi": Row(r"$-\lVert\delta\rVert_1$, shift 0 alone", "1"),
    "causal_alibi": Row(r"$\delta$ for $\delta \le 0$, shift 0 alone", "1"),
    "scalar": Row(r"$c_h r_\delta$, all taps mixed", "none"),
}
KERNEL, GRIDS = (3, 3), (16, 224)


@dataclass(frozen=True)
class Floor:
    """What the page says of one that cannot: what it cannot, how wrong it must be, and why.

    Attributes:
        cells: what cannot be expressed, and the floor of the error.
        theorem: the slug of the theorem that proves it.
    """

    cells: tuple[str, str]
    theorem: str


TIES = "ties_cannot_express_convolution"
LOW_RANK = Floor(
    ("a shift, where heads times features are fewer than the pixels it moves", "1/2, that of grey"),
    "low_rank_attention_cannot_express_convolution",
)
CANNOT: Mapping[str, Floor] = {
    '`encoding="none"`': Floor(
        (
            "any tap but the centre one",
            r"$\frac12 \sum_{\delta \ne 0} \lvert W_\delta\rvert$, where a query sees its window "
            "and at least half of the other keys lie outside it",
        ),
        TIES,
    ),
    '`encoding="alibi"`, other shifts than 0': Floor(
        (
            r"kernels that are not functions of $\lvert\delta\rvert_1$: a shift, the blur "
            r"$(1, 2, 1)^{\mathsf T}(1, 2, 1)$",
            r"in 1-D half the $\ell_1$ norm of the odd part; for a shift 1/2",
        ),
        TIES,
    ),
    '`encoding="causal_alibi"`, other shifts than 0': Floor(
        (
            r"a delay of $s$ with $H \le s$ heads",
            r"$\frac12 \big/ \binom{H}{\lfloor H/2\rfloor}$ at least",
        ),
        TIES,
    ),
    '`encoding="t5"`, distances that share a bucket': Floor(
        ("a shift, where a query sees another key in the bucket of its target", "1/2"),
        "tables_select_the_shifts_they_tell_apart",
    ),
    '`normaliser="linear"`': LOW_RANK,
    '`normaliser="kernel"`': LOW_RANK,
    '`normaliser="low_rank"`': LOW_RANK,
}


def _described(name: str) -> list[str]:
    """The row of an encoding: what it is, and what its code says for a 3 x 3 kernel."""
    encoding, row = ENCODINGS[name], ROWS[name]
    offsets = Lattice(KERNEL, (1, 1), (-1, -1)).positions().double()
    small = Lattice.box((GRIDS[0],) * 2)
    shifts = encoding.heads(offsets) if isinstance(encoding, Mixing) else offsets
    gaps: list[str] = []
    plane = True
    try:
        encoding.gap(shifts, small)
    except ValueError:
        plane, shifts = False, torch.zeros(1, 1, dtype=torch.float64)
    for size in GRIDS:
        grid = Lattice.box((size,) * shifts.shape[1])
        mixes = isinstance(encoding, Mixing)
        gaps.append("—" if mixes else number(encoding.gap(shifts, grid), DOWN))
    lattice = Lattice.box((GRIDS[0],) * shifts.shape[1])
    width = encoding.encode(shifts, shifts, lattice)[0].shape[-1]
    natural = [mode for mode in PADDING_MODES if _is_natural(name, mode)]
    factors = not isinstance(encoding, Mixing) and encoding.axes(1) is not None
    theorem = str(encoding.theorem)
    return [
        f"`{name}`",
        row.score,
        f"{width}" if plane else f"{width} in 1-D, shift 0",
        row.gap,
        *gaps,
        ", ".join(natural) or "—",
        "yes" if factors else "no",
        _link(theorem),
    ]


def _link(theorem: str) -> str:
    return f"[{theorem.replace('_', ' ')}](theorems/{theorem}.md)"


def _is_natural(name: str, mode: str) -> bool:
    return ENCODINGS[name].natural(mode) is not None


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(counts: Mapping[Pair, int]) -> str:
    """The page with these counts."""
    described = _table(
        [
            "`encoding=`",
            "score of a head of shift Δ",
            "$D_p$",
            "gap",
            f"at {GRIDS[0]}²",
            f"at {GRIDS[1]}²",
            "natural borders",
            "factors",
            "theorem",
        ],
        [_described(name) for name in ENCODINGS],
    )
    refused = _table(
        ["what", "cannot", "least worst error on images in [0, 1]", "theorem"],
        [[what, *row.cells, _link(row.theorem)] for what, row in CANNOT.items()],
    )
    compared = _table(
        ["", *(f"`{normaliser}`" for normaliser in NORMALISERS)],
        [
            [f"`{name}`", *(_cell(counts[name, normaliser]) for normaliser in NORMALISERS)]
            for name in ENCODINGS
        ],
    )
    return TEXT.format(described=described, refused=refused, compared=compared)


def _cell(count: int) -> str:
    return f"{count:,}" if count else "—"


TEXT = """# Encodings and normalisers

Which positional encodings let attention express convolution, and which cannot. The names are those that `attention_from_conv(conv, encoding=..., normaliser=...)` takes; an object of [your own](your-own-encoding.md) goes where a name goes.

## What can

A head selects the shift Δ if its score there is larger than at every other displacement δ = k − q. By how much is the *gap*: the score is divided by it and multiplied by the sharpness. A small gap asks for large weights, in proportion; [how large they become](logit-scales.md) is tabulated by grid and format. Columns with a size give the gap for a 3 × 3 kernel on so many keys, as the code states it, rounded down.

{described}

*Natural borders* need no padded keys. Zeros come by a sink, and replicated edges by the encoding alone. Circular borders are those of other scores, on the torus of the image: `quadratic` and `absolute_quadratic` give way to `periodic` there, with its gap, and `scalar` takes displacements modulo the grid. An encoding *factors* if its score is a sum over axes of functions of δ − Δ; then the layer is a [soft padding and one convolution](theorems/attention_is_soft_padding_then_convolution.md) at any sharpness. The others cost as much only where their weights are one-hot, a gather; below that every weight is computed.

Three rows are restricted. `t5` is one-dimensional and tells distances below 8 apart: kernels of up to 15 taps. `alibi` and `causal_alibi` select the shift 0 alone, kernels of one pixel. (Several slopes together [express](theorems/ties_cannot_express_convolution.md) more: without a mask every kernel of the distance; no such layer is built here.) Other kernels are refused, with the theorem that says why.

## What cannot

The error is the largest over all images with values in [0, 1], of the best layer of that kind, with any number of heads and any values unless said otherwise. For a range R it is R times as large. A constant output errs by half the range on a shift: 1/2 says that nothing is gained.

{refused}

A name of these raises a `ValueError` that says why and names the theorem.

## With which normaliser

How many times a layer of each pair was compared with the exact convolution of the same integers, in all four formats, with the border of choice and with padded keys, dense and, where it applies, factored. Each agreed bit for bit; the mixtures of `scalar` agreed within their certificate. The convolutions are drawn, all options of torch at once. `python -m tests.pages.encodings --write` makes this page; its tests make the run again, and another of convolutions drawn anew.

{compared}

A [normaliser](theorems/normalisers_are_one_hot_from_their_gap.md) decides from which gap on the weights are one-hot. Over the reals softmax and sigmoid never are; in floating point all are. `sparsemax`, `entmax15` and `top1` are exact over the reals as well. `relu` and `sigmoid` see nothing where a target has no key, and so pad with zeros without a sink; they do not replicate.

## Choosing

- `quadratic` unless there is a reason: the gap is 1 on every grid, heads factor, and borders are natural. `gaussian` is the same with axes of different weight. Their features grow with the distance, so that they should not be stored in a low precision.
- For features of norm at most 1, no encoding in $D$ dimensions has a larger gap than [a spherical code allows](theorems/unit_encodings_have_the_gap_of_a_spherical_code.md). `circle` attains it in two dimensions for more than four taps; its gap falls with the number of taps and never with the image. `bias_table` and `row_column` buy a gap of 1 with one dimension for each tap, or for each row and column.
- `rotary` and `sinusoidal` features, as they are in use, select every shift with about half the gap of the quadratic encoding on images of any practical size.
- `periodic` for circular padding. Its gap falls as the square of the longest axis.
- In few dimensions: `flattened` needs two, for any kernel in any dimension, and large integers. `scalar` needs one. Its heads mix all taps, one head more than taps, and are exact over the reals at finite scores; rounding grows with the number of taps. The three dimensions of arXiv 1911.03584, Theorem 1, are sufficient, not necessary.
"""  # noqa: E501, one line for each paragraph of the page


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print the page or write it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pages.encodings", description=main.__doc__
    )
    parser.add_argument("--write", action="store_true", help="write docs/encodings.md")
    options = parser.parse_args(arguments)
    text = page({pair: tally(pair) for pair in PAIRS})
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
