"""Convolutions on modules of other libraries: what each target carries, as far as it was run.

`python -m tests.pages.stock --write` makes small convolutions on every target, judges each, and
writes what the target carries, what it costs and how large its images may be to `docs/stock.md`. A
row whose library is not installed stays as it is on the page.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from constructions import Stock, assert_equivalent, stock
from constructions.formats import unit_roundoff
from constructions.stock.positions import rounded_reach
from tests.support.helpers import filled, integers
from tests.support.ledger import ROOT
from tests.support.libraries import imported

PAGE = ROOT / "docs" / "stock.md"

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

BORDERS = ("zeros", "replicate", "circular")
OPTIONS: Mapping[str, dict[str, Any]] = {
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 3, "dilation": 2},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "even kernels": {"kernel_size": 2},
}
"""Options of a convolution without a border, or with one of zeros."""


def bordered(rank: int, mode: str) -> Any:
    """A convolution of three taps a side that keeps the size of the image."""
    kind: Any = PLAIN[rank - 1]
    return kind(2, 3, 3, padding=1, padding_mode=mode)


def others(rank: int) -> Mapping[str, Any]:
    """Convolutions of all other kinds, by the name of the kind."""
    found: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        found[name] = PLAIN[rank - 1](2, 4 if name == "groups" else 3, **options)
    found["transposed"] = TRANSPOSED[rank - 1](2, 3, 3, stride=2)
    for dimension, kind in enumerate(PLAIN, start=1):
        if dimension != rank:
            found[f"{dimension}-D"] = kind(2, 3, 3, padding=1)
    return found


def is_convolution(module: Stock, conv: nn.Module, x: Tensor) -> bool:
    """Whether a module computes a convolution, within rounding."""
    try:
        assert_equivalent(module, conv, x)  # type: ignore[arg-type]
    except AssertionError:
        return False
    return True


def is_rectified(module: Stock, conv: nn.Module, x: Tensor) -> bool:
    """Whether a module computes a convolution and its ReLU, within its own bound."""
    bound = module.bound(x)
    assert bound is not None
    # Integers: float64 is exact.
    exact = conv.double()(x.double()).relu()
    return bool(((module(x) - exact).abs() <= bound).all())


@dataclass(frozen=True)
class Target:
    """A row of the page.

    Args:
        name: of the function in `constructions.stock`.
        of: the class of the target, for the reader.
        slug: of its theorem.
        size: (heads, width) of a module.
        reach: the largest Z of its scores in a format, and d axes; None for what its page says.
        make: from a convolution and a spatial shape; the function of this name as it is for None.
        judge: whether a module computes a convolution.
        rank: d of the convolutions that are tried.
        shape: of the images, on each axis that there is.
        needs: the library, where it is not torch.
    """

    name: str
    of: str
    slug: str
    size: Callable[[Stock], tuple[int, int]]
    reach: Callable[[torch.dtype, int], int] | None = None
    make: Callable[[Any, Sequence[int]], Stock] | None = None
    judge: Callable[[Stock, nn.Module, Tensor], bool] = is_convolution
    rank: int = 2
    shape: tuple[int, ...] = (5, 6, 3)
    needs: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether its library is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def made(self, conv: Any) -> Stock:
        """The target that computes a convolution."""
        if self.needs is not None:
            imported(self.needs)
        make = self.make or getattr(stock, self.name)
        module: Stock = make(conv, self.shape[: len(conv.kernel_size)])
        return module

    def carries(self, conv: Any) -> bool:
        """Whether the target takes a convolution; then it computes it.

        Raises:
            AssertionError: it takes it, and computes something else.
        """
        filled(conv)
        try:
            module = self.made(conv)
        except (TypeError, ValueError):
            return False
        x = integers(2, conv.in_channels, *module.spatial_shape)
        assert self.judge(module, conv, x), (self.name, conv)
        return True


def of_attention(module: Stock) -> tuple[int, int]:
    """Heads and width of an `nn.MultiheadAttention`."""
    attention: Any = module.module
    return attention.num_heads, attention.embed_dim


def of_block(module: Stock) -> tuple[int, int]:
    """Heads and width of a block of a Transformer."""
    found = [m for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
    return found[-1].num_heads, found[-1].embed_dim


def of_projection(heads: str, projection: str) -> Callable[[Stock], tuple[int, int]]:
    """Heads and width by the names of the number of heads and of the output projection.

    Where there is no such number, it is that of the pieces that the projection adds up.
    """

    def of(module: Stock) -> tuple[int, int]:
        target: Any = module.module
        width: int = target.get_submodule(projection).weight.shape[1]
        if hasattr(target, heads):
            return getattr(target, heads), width
        return width // target.head_dim, width

    return of


def of_copies(module: Stock) -> tuple[int, int]:
    """Heads and width of stand-alone self-attention: each head has a copy of the image."""
    target: Any = module.module
    return target[1].heads, target[2].weight.shape[1]


def exact_reach(dtype: torch.dtype, dimension: int) -> int:
    """Of attention, with a head dimension of 16."""
    return (round(1 / unit_roundoff(dtype)) - 1) // 2


def block_reach(dtype: torch.dtype, dimension: int) -> int:
    """Of blocks, whose scores are rounded."""
    return rounded_reach(dtype, 6 * dimension + 60)


def as_patches(conv: Any, shape: Sequence[int]) -> Stock:
    """Attention on patches of 2 pixels a side."""
    module: Stock = stock.vit(conv, shape, patch_size=2)
    return module


def as_encoder(conv: Any, shape: Sequence[int]) -> Stock:
    """An encoder of one layer."""
    module: Stock = stock.encoder(nn.Sequential(conv, nn.ReLU()), shape)
    return module


SOFT = "stock_attention_is_convolution"
BLOCK = "a_transformer_block_is_convolution_and_relu"

TABLES = "tables_select_the_shifts_they_tell_apart"

TORCH = [
    Target("multihead_attention", "torch.nn.MultiheadAttention", SOFT, of_attention, exact_reach),
    *(
        Target(name, f"torch.nn.{of}", BLOCK, of_block, block_reach, make, is_rectified)
        for name, of, make in (
            ("encoder_layer", "TransformerEncoderLayer", None),
            ("encoder", "TransformerEncoder", as_encoder),
            ("decoder_layer", "TransformerDecoderLayer", None),
        )
    ),
]
TIMM = [
    Target(name, of, slug, of_projection("num_heads", "proj"), make=make, shape=shape, needs="timm")
    for name, of, slug, make, shape in (
        (
            "gpsa",
            "timm.models.convit.GPSA",
            "gated_heads_start_as_convolution_for_odd_sides",
            None,
            (5, 5, 5),
        ),
        (
            "swin",
            "timm.models.swin_transformer.WindowAttention",
            TABLES,
            None,
            (5, 6, 3),
        ),
        ("beit", "timm.models.beit.Attention", TABLES, None, (5, 6, 3)),
        (
            "vit",
            "timm.layers.Attention",
            "patches_trade_heads_for_width",
            as_patches,
            (6, 6, 6),
        ),
    )
]
TRANSFORMERS = [
    Target(name, f"transformers.models.{of}", slug, size, rank=rank, needs="transformers")
    for name, of, slug, size, rank in (
        ("t5", "t5.modeling_t5.T5Attention", TABLES, of_projection("n_heads", "o"), 1),
        (
            "llama",
            "llama.modeling_llama.LlamaAttention",
            "rotations_select_shifts_without_resonance",
            of_projection("num_heads", "o_proj"),
            2,
        ),
        (
            "gpt_oss",
            "gpt_oss.modeling_gpt_oss.GptOssAttention",
            "borders_are_limits_of_attention",
            of_projection("num_heads", "o_proj"),
            1,
        ),
    )
]
PAPERS = [
    Target(
        "stand_alone",
        "arXiv:1906.05909",
        "the_stem_needs_one_mixture_more",
        of_copies,
    )
]

TARGETS = [t for t in (*TORCH, *TIMM, *TRANSFORMERS, *PAPERS) if t.name in stock.__all__]
"""One for each function of `constructions.stock`."""


# The page -----------------------------------------------------------------------------------------


def row(target: Target) -> str:
    """The line of a target, from what it takes and computes now."""
    kinds = {mode: bordered(target.rank, mode) for mode in BORDERS}, others(target.rank)
    carried = [[n for n, conv in found.items() if target.carries(conv)] for found in kinds]
    borders, options = (", ".join(names) or "—" for names in carried)
    has_zeros = "zeros" in carried[0]
    plain = bordered(target.rank, "zeros") if has_zeros else PLAIN[target.rank - 1](2, 3, 3)
    heads, width = target.size(target.made(plain))
    largest = "see there"
    if target.reach is not None:
        reaches = [target.reach(dtype, 2) for dtype in (torch.float32, torch.float64)]
        largest = " / ".join(f"{math.isqrt(reach // 2):,}" for reach in reaches)
    theorem = f"[{target.slug.replace('_', ' ')}](theorems/{target.slug}.md)"
    cells = (f"`{target.name}`", f"`{target.of}`", borders, options, heads, width, largest, theorem)
    return f"| {' | '.join(map(str, cells))} |"


def rows(text: str) -> dict[str, str]:
    """The lines of the page's table by the name of the function."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


def page(found: Mapping[str, str]) -> str:
    """The page with these lines."""
    table = "\n".join([TITLES, RULE, *(found[target.name] for target in TARGETS)])
    return f"{HEAD}\n\n{table}\n\n{TAIL}\n"


def found_rows(text: str) -> dict[str, str]:
    """The lines of all targets: run now, or as the page has them where a library is absent."""
    there = rows(text)
    return {t.name: row(t) if t.is_here else there[t.name] for t in TARGETS}


TITLES = (
    "| function | target | borders | takes | heads | width | n + \\|Δ\\| a side, float32 / float64 "
    "| theorem |"
)
RULE = "|---|---|---|---|---:|---:|---:|---|"

HEAD = """# On layers nobody here wrote

The modules that people use, unmodified: their class and their forward, our parameters. `constructions.stock` has a function for each target. It takes a convolution and the size of its images and returns a `Stock`: `.module` is the target's own, `.tokens(x)` what it is called with, `.image(y)` selects from what it returns, and the whole is called as the convolution is. There is one token a pixel, holding that pixel's channels and numbers of its position; the module does the mixing.

```python
import torch
from torch import nn

from constructions import assert_equivalent, stock

conv = nn.Conv2d(3, 8, 3, padding=1)
attention = stock.multihead_attention(conv, (10, 12))
assert type(attention.module) is nn.MultiheadAttention
assert_equivalent(attention, conv, torch.randn(2, 3, 10, 12))
```

Every cell was run on small convolutions of integers when this page was made (`python -m tests.pages.stock --write`), and its tests run it again. *Takes* is what goes beyond stride 1, no dilation, no groups and odd kernels in two dimensions, or in one for targets of lines; what is not there is refused with a reason. Heads, and width (heads times their dimension), are those of a convolution of three taps a side, of 2 to 3 channels, with a border of zeros. The largest size is of square images in two dimensions, where the theorem has a number for it; beyond it a function raises `ValueError`."""  # noqa: E501, one line for each paragraph of the page

TAIL = """`multihead_attention(..., causal=True)` is the causal convolution of an `nn.Conv1d`: [T22](theorems/causal_convolution_is_causal_attention.md). The three kinds of blocks compute the ReLU too, unless `relu=False`, read each output as half of a channel less the one of its negative, and err by what `.bound(x)` says; the others are judged by `assert_equivalent`: the rounding of a sum. A whole network: [a small CNN as a Transformer](a-small-cnn-as-a-transformer.md).

## Two traps in torch

Zero padding is an attention sink, and torch has one: `add_zero_attn=True`. In two places it leaves it out and says nothing, and the border is replicated (seen in torch 2.13, and tested):

- `nn.MultiheadAttention` with `is_causal=True`, `need_weights=False` and `add_zero_attn`: the hint replaces the mask, and hides the last key, which is the zero one. The causal construction puts a token of zeros in front instead.
- `nn.TransformerEncoderLayer` in `eval()`, without gradients and with an even number of heads, takes a fast path that does not look at its attention's `add_zero_attn`. The constructions of blocks append a token instead, which both paths see.

And one of arithmetic: coordinates are counted from the middle of the image and told apart by scores, so a module is made for one format. Moving it to another, or calling it under autocast, is refused."""  # noqa: E501, likewise


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every target, and print the page or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.pages.stock", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/stock.md")
    options = parser.parse_args(arguments)
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    text = page(found_rows(before))
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
