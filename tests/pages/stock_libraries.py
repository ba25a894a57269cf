"""The page of timm's and transformers' layers: what each carries, as it ran.

Every cell of its first table is the outcome of a construction: a convolution of integers with one
option, built on the class and compared bit for bit, or refused, and by which theorem.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from constructions import stock
from constructions.stock.rotations import Rotations, frequencies_of
from tests.support.helpers import filled, integers
from tests.support.ledger import ROOT
from tests.support.libraries import imported
from tests.support.oracle import convolve_module, exact_error, numbers

PAGE = ROOT / "docs" / "stock-libraries.md"

NAMES = ("gpsa", "swin", "beit", "t5", "llama", "gpt_oss", "stand_alone", "vit")
PLANE = ("gpsa", "swin", "beit", "stand_alone", "vit")
"""Those whose sample is an image of two dimensions; of the others it is a line."""

CLASSES = {
    "gpsa": ("timm.models.convit", "GPSA"),
    "swin": ("timm.models.swin_transformer", "WindowAttention"),
    "beit": ("timm.models.beit", "Attention"),
    "t5": ("transformers.models.t5.modeling_t5", "T5Attention"),
    "llama": ("transformers.models.llama.modeling_llama", "LlamaAttention"),
    "gpt_oss": ("transformers.models.gpt_oss.modeling_gpt_oss", "GptOssAttention"),
    "stand_alone": ("constructions.stock.stand_alone_attention", "StandAloneAttention"),
    "vit": ("timm.layers", "Attention"),
}

THEOREMS = {
    "gpsa": ("T19", "gated_heads_start_as_convolution_for_odd_sides"),
    "swin": ("T14", "tables_select_the_shifts_they_tell_apart"),
    "beit": ("T14", "tables_select_the_shifts_they_tell_apart"),
    "t5": ("T14", "tables_select_the_shifts_they_tell_apart"),
    "llama": ("T14", "rotations_select_shifts_without_resonance"),
    "gpt_oss": ("T14", "rotations_select_shifts_without_resonance"),
    "stand_alone": ("T18", "the_stem_needs_one_mixture_more"),
    "vit": ("T20", "patches_trade_heads_for_width"),
}

ROWS: Mapping[str, dict[str, Any]] = {
    "no padding": {},
    "zeros around": {"padding": 1},
    "zeros, more outputs than pixels": {"padding": 2},
    "`replicate`": {"padding": 1, "padding_mode": "replicate"},
    "`circular`": {"padding": 1, "padding_mode": "circular"},
    "`reflect`": {"padding": 1, "padding_mode": "reflect"},
    "even kernel": {"kernel_size": 2},
    "stride 2": {"padding": 1, "stride": 2},
    "dilation 2": {"padding": 2, "dilation": 2},
    "groups": {"padding": 1, "groups": 2},
    "transposed, stride 2": {"transposed": True, "padding": 1, "stride": 2},
    "without bias": {"padding": 1, "bias": False},
    "in one dimension": {"padding": 1, "rank": 1},
    "in two dimensions": {"padding": 1, "rank": 2},
    "in three dimensions": {"padding": 1, "rank": 3},
}
"""The options of a 3 x 3, or 3, kernel of 2 to 4 channels, on 6 x 6 pixels or 6."""


def sample(name: str, options: Mapping[str, Any]) -> tuple[nn.Module, Tensor]:
    """A convolution of integers with some options, and an image."""
    chosen = {"kernel_size": 3, **options}
    rank = chosen.pop("rank", 2 if name in PLANE else 1)
    kinds: Any = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if chosen.pop("transposed", False)
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    return filled(kinds[rank - 1](2, 4, **chosen)), integers(1, 2, *(6,) * rank)


def build(name: str, conv: nn.Module, x: Tensor, **options: Any) -> Any:
    """The stock module; a ViT on patches of 2 x 2 pixels, with heads of 16."""
    imported(CLASSES[name][0])
    more = {"patch_size": 2, "head_dim": 16} if name == "vit" else {}
    return getattr(stock, name)(conv, x.shape[2:], **more | options)


def outcome(name: str, options: Mapping[str, Any]) -> str:
    """Yes if it is the convolution bit for bit, else what its refusal is about.

    Raises:
        AssertionError: the module is built and computes something else.
    """
    conv, x = sample(name, options)
    try:
        module = build(name, conv, x)
    except ValueError as refusal:
        found = re.search(r"theorem ([a-z0-9_]+)", str(refusal))
        return f"no, {NUMBERS[found[1]]}" if found else "no"
    with torch.no_grad():
        y = numbers(module(x))
    assert not exact_error(y, convolve_module(conv, x)).any(), (name, options)
    return "yes"


NUMBERS = {slug: number for number, slug in THEOREMS.values()} | {
    "borders_are_limits_of_attention": "T5"
}


def wide(name: str) -> Any:
    """The stock module of a kernel of 9 taps, or 3, and 64 channels in and out."""
    rank = 2 if name in PLANE else 1
    kind: Any = (nn.Conv1d, nn.Conv2d)[rank - 1]
    x = torch.zeros(1, 64, *(4,) * rank)
    return build(name, kind(64, 64, 3, padding=1), x, **{"head_dim": 64} if name == "vit" else {})


COSTS: Mapping[str, Callable[[Any], tuple[int, int, int]]] = {
    "gpsa": lambda m: (m.num_heads, m.dim // m.num_heads, m.dim),
    "swin": lambda m: (m.num_heads, m.proj.in_features // m.num_heads, m.dim),
    "beit": lambda m: (m.num_heads, m.proj.in_features // m.num_heads, m.qkv.in_features),
    "t5": lambda m: (m.n_heads, m.key_value_proj_dim, m.d_model),
    "llama": lambda m: (m.config.num_attention_heads, m.head_dim, m.q_proj.in_features),
    "gpt_oss": lambda m: (m.config.num_attention_heads, m.head_dim, m.q_proj.in_features),
    "stand_alone": lambda m: (
        m[1].heads,
        m[1].value.out_channels // m[1].heads,
        m[0].in_channels,
    ),
    "vit": lambda m: (m.num_heads, m.head_dim, m.qkv.in_features),
}
"""Heads, their dimension and the width of the tokens, of a module."""


def largest(holds: Callable[[int], bool]) -> int:
    """The largest number at which something holds that holds up to some number."""
    high = 1
    while holds(2 * high):
        high *= 2
    low = high
    step = high // 2
    while step:
        if holds(low + step):
            low += step
        step //= 2
    return low


FAR = 1_500_000


@cache
def size(name: str, dtype: torch.dtype) -> str:
    """Up to which size the scores of a 3 x 3, or 3, kernel are as exact as the theorem needs."""
    bits = {torch.float32: 24, torch.float64: 53}[dtype]
    if name == "gpsa":
        return f"{largest(lambda n: 2 * (n - 1) ** 2 + 4 * (n - 1) <= 2**bits):,} a side"
    if name == "vit":  # patches from the middle, h away, targets one farther, in two dimensions
        far = largest(lambda h: 2 * (2 * (2 * h * (h + 1) + h**2 + (h + 1) ** 2)) <= 2**bits)
        return f"{2 * far + 1:,} patches a side"
    if name in ("llama", "gpt_oss"):
        # Tables are of float32 in both formats, which is what bounds them. The least drop falls
        # with the reach: where both ends say the same, so does what is in between.
        frequencies, share = frequencies_of(wide(name).rotary), 1 + (name == "gpt_oss")

        def thousands(reach: int) -> int:
            drop = Rotations(frequencies, dtype, 2, reach).drop / share
            return largest(
                lambda n: 2 * Rotations(frequencies, dtype, 1000 * n, 1).scores_err < drop
            )

        found = thousands(FAR)
        assert found == thousands(1000) < FAR / 1000
        return f"{1000 * found:,} tokens"
    return "any"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tables() -> tuple[str, str]:
    """What each carries, and what it costs."""
    titles = ["", *(f"`{name}`" for name in NAMES)]
    carried = [[row, *(outcome(name, o) for name in NAMES)] for row, o in ROWS.items()]
    costs = [
        [
            f"`{name}`",
            f"`{CLASSES[name][1]}`",
            f"[{THEOREMS[name][0]}](theorems/{THEOREMS[name][1]}.md)",
            *map(str, COSTS[name](wide(name).module)),
            size(name, torch.float32),
            size(name, torch.float64),
        ]
        for name in NAMES
    ]
    named = ["", "class", "theorem", "heads", "of dimension", "width", "float32", "float64"]
    return table(titles, carried), table(named, costs)


def page() -> str:
    """The whole page."""
    carried, costs = tables()
    return "\n\n".join([HEAD, carried, MIDDLE, costs, TAIL]) + "\n"


HEAD = """# On the layers of timm and transformers

`constructions.stock` sets the parameters of attention layers that people use so that they compute a given convolution. The class is the library's own, its `forward` too; nothing is downloaded. A `Stock` is called as the convolution is, and `assert_equivalent` judges it. There is one token a pixel, or one a patch for `vit`; it holds the pixel's channels and numbers of its position, and border tokens are zeros. Outputs are selected: the module does the mixing.

```text
from constructions import assert_equivalent, stock

conv = nn.Conv2d(3, 8, 3, padding=1)
layer = stock.swin(conv, (32, 32))     # layer.module is timm's WindowAttention
assert_equivalent(layer, conv, torch.randn(1, 3, 32, 32))
```

They need `pip install -c constraints.txt -e '.[ecosystem]'` in a clone, but for `stand_alone`, which no library has: its module is our own, written from the paper. Where a torchvision that was built for CUDA keeps timm from loading beside a torch for CPUs, the `ImportError` says what to do.

## What each carries

As it ran: *yes* is equal to the exact convolution bit for bit, of integers in float32, a kernel of 3 x 3 or 3 and two to four channels on 6 x 6 pixels or 6, or what the row says. *No* is a `ValueError` that names a theorem, T5 being [Borders are limits of attention](theorems/borders_are_limits_of_attention.md); without one it is about the number of dimensions. It says what the function refuses; that a layer could not is said [below](#what-each-does-by-itself). `python -m tests.pages.stock_libraries --write` makes this page."""  # noqa: E501, one line for each paragraph of the page

MIDDLE = """Zero padding is made of zeros among the tokens, or by a sink where a layer has one; other borders are made by scores, of pixels alone, and reflected by one pixel at most: a table of displacements makes no more. Weights are exactly one-hot, in float32 and float64; with `sharpness=` they are not, and a target leads by that much. Formats of 16 bits are refused, since a module rounds what it hands from one matrix to the next. An empty batch is an error of the libraries' own code. `stand_alone(..., stem=True)` is the paper's stem, for convolutions without bias. With `causal=True`, `llama` and `gpt_oss` run under the causal mask of their models, and compute `conv(F.pad(x, (dilation * (K - 1), 0)))` for an `nn.Conv1d` without padding. `lower(layer.module, grid=...)` takes the modules of `gpsa`, `swin`, `beit` and `t5` back to a convolution.

## What it costs

For 64 channels in and out and nine taps, three for the layers of sequences; a patch of `vit` is 2 x 2 pixels. The last two columns say up to which size scores are as exact as they have to be: beyond it the function refuses. *Any* means that scores are stored or local."""  # noqa: E501, one line for each paragraph of the page

TAIL = """## What each does by itself

| layer | can, and cannot | constant |
|---|---|---|
| ConViT's GPSA | starts as a convolution for 9 heads; for 4 and 16, as shipped, never: its heads average four pixels ([T19](theorems/gated_heads_start_as_convolution_for_odd_sides.md)) | misses a kernel $W$ by $\\lvert\\sum (-1)^{\\delta_1} W_\\delta\\rvert$ at any locality; gates are open from λ = 17 in float32, 37 in float64; shipped ones are positional to 0.731, and to 0.232 on the target |
| Swin's window attention | every shift of its window ([T14](theorems/tables_select_the_shifts_they_tell_apart.md)), with replicate and circular borders; zeros are tokens | at a gap of $g$, $n - 1$ keys leak $(n - 1) e^{-g}$ to first order |
| BEiT's attention | the same; its class token is a sink and pads with zeros ([T5](theorems/borders_are_limits_of_attention.md)) | the sink stands at $g / 2$, so twice the gap |
| T5's attention | shifts up to 7, kernels of 15 taps, with replicate borders; none beyond ([T14](theorems/tables_select_the_shifts_they_tell_apart.md)) | a shift of 8 and more is missed by half the range of the pixels |
| Llama's attention | every shift, given a channel that is constant, which its models have not ([T14](theorems/rotations_select_shifts_without_resonance.md)); under its mask those that look back | a gap of 0.51 for each unit of scale with the eight standard frequencies; the tables of float32 end it near a million tokens |
| gpt-oss's attention | the same; its learned sinks pad with zeros ([T5](theorems/borders_are_limits_of_attention.md)) | queries twice as large |
| stand-alone attention | every kernel in its window, given a constant channel; without one, only taps that are all alike ([T18](theorems/the_stem_needs_one_mixture_more.md)) | the stem takes $r + [\\mathbf 1 \\notin V]$ mixtures at least, and one for each place at most |
| a ViT's attention | every kernel, with few heads that are wide ([T20](theorems/patches_trade_heads_for_width.md)) | ViT-B/16 and a 3 x 3 kernel on RGB: 20 heads of 64, for its 12 |"""  # noqa: E501, one line for each row of the table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print the page or write it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pages.stock_libraries", description=main.__doc__
    )
    parser.add_argument("--write", action="store_true", help="write docs/stock-libraries.md")
    options = parser.parse_args(arguments)
    text = page()
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
