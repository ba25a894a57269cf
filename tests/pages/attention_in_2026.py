"""The page of attention as it is built in 2026: what each can, with constants of the classes.

Numbers are computed from the defaults of the libraries' own configurations. That the formulas are
those of the classes is what `test_attention_in_2026.py` finds out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tests.pages.stock_libraries import table
from tests.support.ledger import ROOT
from tests.support.libraries import imported

PAGE = ROOT / "docs" / "attention-in-2026.md"

ONE_HOT = 150 * math.log(2)
"""From this range on float32 rounds a softmax to one-hot weights: T8."""

AXES = ("time", "height", "width")

SIDES = (14, 32, 64)
"""Patches a side, for DINOv3."""


def modeling(name: str) -> Any:
    """The module of transformers with the classes of a model; the test is skipped without it."""
    return imported(f"transformers.models.{name}.modeling_{name}")


def least_leak(keys: int, spread: float) -> float:
    """Equation (1): what a softmax over so many keys leaks at least, scores within a range."""
    rest = (keys - 1) * math.exp(-spread)
    return rest / (1 + rest)


def one_axis_gap(frequencies: Sequence[float]) -> float:
    """Equation (2): the gap that no rotary head exceeds on an axis, amplitudes being 1."""
    return math.fsum(2 * math.sin(theta / 2) ** 2 for theta in frequencies)


def softpick(scores: Sequence[Any], exp: Any = math.exp) -> list[Any]:
    """The normaliser of arXiv 2504.20966, without the small number that guards against 0 / 0."""
    less = [exp(score) - 1 for score in scores]
    total = sum(abs(x) for x in less)
    return [max(x, 0 * x) / total for x in less]


@cache
def bands(name: str) -> dict[str, tuple[float, ...]]:
    """Frequencies of each axis of a model's rotary tables: those whose angle the axis moves."""
    module = modeling(name)
    kind = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VLText"}[name]
    rotary = getattr(module, f"{kind}RotaryEmbedding")(getattr(module, f"{config_of(name)}")())
    found = {}
    for axis, label in enumerate(AXES):
        places = torch.zeros(3, 1, 1, dtype=torch.long)
        places[axis] = 1
        _, sine = rotary(torch.zeros(1), places)  # the sine of angle 0 is 0
        moved = sine[0, 0, : len(rotary.inv_freq)] != 0
        found[label] = tuple(rotary.inv_freq[moved].double().tolist())
    return found


def config_of(name: str) -> str:
    """The configuration class that a model's file imports."""
    return {"qwen2_vl": "Qwen2VLTextConfig", "qwen3_vl": "Qwen3VLTextConfig"}[name]


def dino(patches: int, **options: Any) -> tuple[float, ...]:
    """DINOv3's angles for a step of one patch on one axis, of images of so many patches a side."""
    module = modeling("dinov3_vit")
    config = module.DINOv3ViTConfig(**options)
    rotary = module.DINOv3ViTRopePositionEmbedding(config)
    return tuple(4 * math.pi / patches * w for w in rotary.inv_freq.double().tolist())


@dataclass(frozen=True)
class Recurrent:
    """A layer of gated linear attention: the numbers of its state, and its channels."""

    state: int
    channels: int

    @classmethod
    def of_qwen3_next(cls, **options: int) -> Recurrent:
        """The state of the delta rule, and the inputs that its convolution keeps."""
        modeling("qwen3_next")
        config = imported("transformers").Qwen3NextConfig(**options)
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        kept = (config.linear_conv_kernel_dim - 1) * (2 * keys + values)
        return cls(values * config.linear_key_head_dim + kept, config.hidden_size)

    @property
    def longest_delay(self) -> int:
        """Equation (4): no longer one of all channels has an error below a half."""
        return self.state // self.channels


def number(x: float) -> str:
    """Three digits, as the pages write them."""
    mantissa, _, exponent = f"{x:.2e}".partition("e")
    power = int(exponent)
    return f"{x:.3g}" if -3 < power < 5 else f"${mantissa} \\cdot 10^{{{power}}}$"


def rows() -> list[list[str]]:
    """The table."""
    cap = imported("transformers").Gemma2Config().attn_logit_softcapping
    dim = imported("transformers").Qwen3Config().head_dim
    window = imported("transformers").MistralConfig().sliding_window
    vit = imported("transformers").ViTConfig()
    split, woven = bands("qwen2_vl"), bands("qwen3_vl")
    recurrent = Recurrent.of_qwen3_next()
    return [
        [
            "layers without positions, causal",
            "cannot: taps that look back",
            "$\\frac12 \\sum_{\\delta < 0} \\lvert W_\\delta\\rvert$ in one layer, where as many tokens stand beside the taps",  # noqa: E501, one line for each cell
            "[T22](theorems/causal_convolution_is_causal_attention.md#without-positions)",
            "`SmolLM3Attention`, a layer without rotary",
        ],
        [
            "soft-capped logits, $c \\tanh(s / c)$",
            "can, but for a leak that no sharpness removes; never one-hot in float32",
            f"[(1)](#eq-1), $r = 2c = {2 * cap:.0f}$: {number(least_leak(4096, 2 * cap))} of 4,096 keys; one-hot takes $r \\ge {ONE_HOT:.2f}$",  # noqa: E501, one line for each cell
            "[(1)](#eq-1), [T8](theorems/saturated_softmax_is_one_hot.md)",
            "`Gemma2Attention`",
        ],
        [
            "QK-norm with gains $\\gamma$",
            "can, as far as its gains let scores grow",
            f"[(1)](#eq-1), $r = 2\\sqrt{{D_k}} \\max\\lvert\\gamma_q\\rvert \\max\\lvert\\gamma_k\\rvert$: with gains 1 and $D_k = {dim}$, {number(2 * dim**0.5)}, {number(least_leak(4096, 2 * dim**0.5))} of 4,096 keys; one-hot takes $\\gamma_q\\gamma_k \\ge {ONE_HOT / (2 * dim**0.5):.2f}$",  # noqa: E501, one line for each cell
            "[(1)](#eq-1)",
            "`Qwen3Attention`",
        ],
        [
            "Swin v2: continuous bias $16\\,\\sigma(f(\\delta))$ beside cosine attention",
            "can, every shift of the window, but for a leak where queries and keys are constant; positions in the tokens add at most 200 to $r$",  # noqa: E501, one line for each cell
            f"[(1)](#eq-1), $r = 16$: {number(least_leak(64, 16))} in a window of 8 x 8, {number(least_leak(256, 16))} in 16 x 16; five hidden units of its 512 a head",  # noqa: E501, one line for each cell
            "[(1)](#eq-1), [T14](theorems/tables_select_the_shifts_they_tell_apart.md)",
            "`Swinv2SelfAttention`",
        ],
        [
            "M-RoPE, an axis a band (Qwen2-VL)",
            "can over the reals; out of proportion for float32 along the axis of the slowest band",
            f"[(2)](#eq-2) at most, with amplitudes 1, which T14's heads attain up to 1,000 places: {', '.join(f'{number(one_axis_gap(split[a]))} in {a}' for a in AXES)}",  # noqa: E501, one line for each cell
            "[(2)](#eq-2), [T14](theorems/rotations_select_shifts_without_resonance.md)",
            "`Qwen2VLRotaryEmbedding`",
        ],
        [
            "M-RoPE, axes interleaved (Qwen3-VL)",
            "can, each axis having frequencies of all sizes",
            f"[(2)](#eq-2), as above: {', '.join(f'{number(one_axis_gap(woven[a]))} in {a}' for a in AXES)}",  # noqa: E501, one line for each cell
            "[(2)](#eq-2), [T14](theorems/rotations_select_shifts_without_resonance.md)",
            "`Qwen3VLTextRotaryEmbedding`",
        ],
        [
            "DINOv3's rotary, of coordinates in $[-1, 1]$",
            "can, with a gap that falls as $n^{-2}$ for $n$ patches a side",
            f"[(3)](#eq-3), at most {number(8 * math.pi**2 * square_sum())} $n^{{-2}}$: {', '.join(f'{number(one_axis_gap(dino(n)))} for {n}' for n in SIDES)}, which T14's heads attain",  # noqa: E501, one line for each cell
            "[(3)](#eq-3), [T14](theorems/rotations_select_shifts_without_resonance.md)",
            "`DINOv3ViTRopePositionEmbedding`",
        ],
        [
            "learned absolute tables, $N$ places in heads of $D_k$ numbers",
            "can",
            f"the gap of a spherical code, at most $1 - \\cos\\varphi_{{D_k}}(N)$ for queries and keys of norm 1: 1 for $D_k + 2 \\le N \\le 2D_k$, less beyond; in a ViT with $D_k = {vit.hidden_size // vit.num_attention_heads}$, $N = {(vit.image_size // vit.patch_size) ** 2}$",  # noqa: E501, one line for each cell
            "[T12](theorems/unit_encodings_have_the_gap_of_a_spherical_code.md); [ViT as a layer](stock-libraries.md)",  # noqa: E501, one line for each cell
            "`ViTAttention`, $N = 2D_k$",
        ],
        [
            "sliding windows of $w$ tokens, $L$ layers",
            "can within their reach, cannot beyond",
            f"$\\frac12 \\sum_{{\\delta < -L(w - 1)}} \\lvert W_\\delta\\rvert$, [(5)](#eq-5); $w = {window:,}$ reaches {window - 1:,} back in a layer",  # noqa: E501, one line for each cell
            "[(5)](#eq-5)",
            "`MistralModel`",
        ],
        [
            "softmax plus one, and sinks",
            "can, and pad with zeros by themselves",
            "the sink stands half-way between a target and other keys: twice the gap",
            "[T5](theorems/borders_are_limits_of_attention.md); [gpt-oss as a layer](stock-libraries.md)",  # noqa: E501, one line for each cell
            "`GptOssAttention`: sinks of 0 are softmax plus one",
        ],
        [
            "softpick, $\\max(e^s - 1, 0) / \\sum \\lvert e^{s} - 1 \\rvert$",
            "can, with no leak; pads with zeros by itself",
            "a target at $s$ over $T - 1$ keys at 0 or below: off the target nothing, on it short by at most $(T - 1) / (e^s + T - 2)$; by nothing with scores of 0",  # noqa: E501, one line for each cell
            "[(6)](#eq-6)",
            "its definition; neither library has it",
        ],
        [
            "gated linear attention, delta rule, state-space models",
            "the delta rule can, for delays that its state holds; none can beyond",
            f"$\\frac12$, of a constant, for a delay of $s$ and $D$ channels if $sD > M$, [(4)](#eq-4); Qwen3-Next, $M = {recurrent.state:,}$, $D = {recurrent.channels:,}$: $s \\le {recurrent.longest_delay}$",  # noqa: E501, one line for each cell
            "[(4)](#eq-4), [T15](theorems/low_rank_attention_cannot_express_convolution.md)",
            "`torch_recurrent_gated_delta_rule` of Qwen3-Next",
        ],
        [
            "differential attention with its headwise norm",
            "equal never; as near as wanted on a bounded range, thanks to the norm's $\\epsilon$",
            f"relative error at most $m / 2\\epsilon$, $m$ the mean square of a head, [(7)](#eq-7), and nothing but a direction at $\\epsilon = 0$; $\\epsilon$ is {number(imported('transformers').DiffLlamaConfig().rms_norm_eps)}",  # noqa: E501, one line for each cell
            "[(7)](#eq-7)",
            "`DiffLlamaAttention`",
        ],
    ]


def square_sum() -> float:
    """Of DINOv3's frequencies before they are divided by the size, w_f."""
    return math.fsum((theta / (4 * math.pi)) ** 2 for theta in dino(1))


def page() -> str:
    """The whole page."""
    titles = ["mechanism", "can, or cannot", "constant", "by", "checked on"]
    return "\n\n".join([HEAD, table(titles, rows()), TAIL]) + "\n"


HEAD = """# Attention as it is built in 2026

What today's attention can do of a convolution, and by which constant it cannot. Errors are the largest over images with values in $[0, 1]$; a constant output errs by half the range on a shift. Classes are those of transformers, unmodified and small, evaluated eagerly, as they are written; the numbers are of their default configurations. Layers that carry whole convolutions, with zero padding, strides and the rest, are on [their page](stock-libraries.md); tables, ALiBi, T5's buckets, linear attention and the other normalisers in [encodings and normalisers](encodings.md). `python -m tests.pages.attention_in_2026 --write` makes this page."""  # noqa: E501, one line for each paragraph of the page

TAIL = r"""What is not a theorem's own is proven here; [`tests/pages/test_attention_in_2026.py`](../tests/pages/test_attention_in_2026.py) has a test for each row.

## Scores in a range

Let the scores of $T$ keys differ by at most $r$. Each key but the target weighs at least $e^{-r}$ of what the target weighs, so

<a id="eq-1"></a>

```math
1 - a_t \;\ge\; \frac{(T - 1)\, e^{-r}}{1 + (T - 1)\, e^{-r}} , \tag{1}
```

with equality where the target is $r$ above all others. A cap $c$ leaves $r = 2c$. RMS-normalised vectors of $D_k$ numbers have norm $\sqrt{D_k}$ at most, times the largest gain; rotations keep it, and scores are divided by $\sqrt{D_k}$. A sigmoid times 16 leaves $r = 16$. Whether [(1)](#eq-1) is seen depends on the format: $e^{-100}$ is 26 times float32's smallest number, so that a pixel of zero comes out as another one's $4 \cdot 10^{-44}$, and a rounding hides it beside any pixel of ordinary size. (A processor that flushes such numbers hides it altogether.)

*Swin v2's bias makes every shift.* Its coordinates $u_i$ grow with $\delta_i$. Four units of its hidden layer make $\lvert u_1 - u_1(\Delta)\rvert + \lvert u_2 - u_2(\Delta)\rvert$ and one the constant, so $f$ is as large as one likes at $\Delta$ and as far below zero elsewhere: [(1)](#eq-1) is approached.

## Rotary bands

Let the angles of some axis turn by $\theta_f$ for a step, and let the products of a query's and a key's pair have modulus at most $a_f$, with keys that hold the same. The score at a distance of $\delta$ on this axis alone is $\mathrm{Re} \sum_f c_f e^{i\theta_f\delta}$ plus what does not depend on it. A target with a key on either side has over the lower of the two not more than half of

<a id="eq-2"></a>

```math
2 s_0 - s_1 - s_{-1} = 2\, \mathrm{Re} \sum_f c_f (1 - \cos\theta_f) \;\le\; 2 \sum_f a_f (1 - \cos\theta_f) , \tag{2}
```

whatever is learned: no gap on this axis exceeds $\sum_f a_f (1 - \cos\theta_f)$, and T14's heads attain it where the nearest key is the runner-up. For Qwen2-VL's width the largest frequency is $1.8 \cdot 10^{-4}$. The sum of the amplitudes has to be at least $103.97 / (1 - \cos\theta_{\max}) > 6 \cdot 10^9$ for one-hot weights, where the numbers of float32 are 512 apart; and the cosine of one step is 1 in the class's table.

DINOv3 places $n$ patches at distances $2/n$, at frequencies $2\pi w_f$, so $\theta_f = 4\pi w_f / n$, and since $1 - \cos x \le x^2 / 2$

<a id="eq-3"></a>

```math
\sum_f a_f (1 - \cos\theta_f) \;\le\; \frac{8\pi^2}{n^2} \sum_f a_f w_f^2 . \tag{3}
```

## A state is a bottleneck

Let a causal layer carry $M$ numbers from token to token, each a continuous function of the tokens before, and let the outputs from $t$ on be functions of these and of the tokens from $t$ on. Linear attention, its gated forms, the delta rule and state-space models are of this kind, whatever their gates look at. A delay of $s$ with $D$ channels has $N = sD$ numbers to carry past $t$: those of the $s$ tokens before. If $M < N$, then by the theorem of Borsuk and Ulam, on the boundary of the cube $[0, 1]^N$, which is a sphere with antipodes $x$ and $1 - x$,

<a id="eq-4"></a>

```math
S(x) = S(1 - x) , \qquad \max_i \lvert x_i - (1 - x_i) \rvert = 1 , \qquad\text{hence an error of } \tfrac12 \text{ at least.} \tag{4}
```

For weights of positions alone this is the argument of [T15](theorems/low_rank_attention_cannot_express_convolution.md): not for the whole matrix, which a state can give full rank, but for its block from the tokens before $t$ to the outputs from $t$ on, of rank $M$ at most. Where a layer reads its own token through the state alone, $s + 1$ stands for $s$; the delta rule attains that, with $s + 1$ orthogonal keys used in turn. (Many of these models have a short convolution in front, which is one.)

## Windows

A layer that sees the last $w$ tokens, itself included, reaches $w - 1$ back, and $L$ of them $L(w - 1)$. Two lines that differ only beyond, being 1 where a tap that is out of reach is positive and 0 where it is not, and the opposite, have one output and two convolutions:

<a id="eq-5"></a>

```math
\max \lvert y - \mathrm{Conv}(X) \rvert \;\ge\; \tfrac12 \sum_{\delta < -L(w - 1)} \lvert W_\delta \rvert . \tag{5}
```

## Softpick

A key whose score is at most 0 has the weight 0, and adds less than 1 to the denominator; one of score 0 adds nothing. For a target at $s > 0$ and all others at 0 or below,

<a id="eq-6"></a>

```math
a_k = 0 \; (k \ne t) , \qquad 1 - a_t \le \frac{T - 1}{e^s - 1 + T - 1} . \tag{6}
```

If the target is no key nothing is seen (as long as some score is not 0; else $0/0$, which the definition turns into 0): zeros around.

## The headwise norm

Each head of a differential layer ends in $v \mapsto v / \sqrt{\epsilon + m}$, $m$ the mean of its squares. At $\epsilon = 0$ this forgets how large an image is, and a convolution does not. With the $\epsilon$ that the class has

<a id="eq-7"></a>

```math
0 \;\le\; v - \sqrt\epsilon\, \frac{v}{\sqrt{\epsilon + m}} \;\le\; \frac{m}{2\epsilon}\, v \quad (v \ge 0) , \tag{7}
```

since $1 - (1 + x)^{-1/2} \le x / 2$: values that are made small, and enlarged after the norm, pass. It is never equality, for the output of the norm is bounded, and a convolution is not."""  # noqa: E501, one line for each paragraph of the page


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print the page or write it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pages.attention_in_2026", description=main.__doc__
    )
    parser.add_argument("--write", action="store_true", help="write docs/attention-in-2026.md")
    options = parser.parse_args(arguments)
    text = page()
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
