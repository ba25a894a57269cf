"""Stock LlamaAttention, unmodified, computes convolutions: constants in its biases, shifts as rotations.

T14, `docs/theorems/rotations_select_shifts_without_resonance.md`, equation 22. Multi-query
attention is enough: one constant key and one value for all heads, a query for each tap.
"""  # noqa: E501

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions.normalisers import Softmax
from tests.support.ledger import record
from tests.support.libraries import imported
from tests.support.oracle import convolve_module, exact_error, numbers
from theory.tools import resonances
from theory.tools.theta import ball, precision

SLUG = "rotations_select_shifts_without_resonance"
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

HEAD_DIM = 16  # eight frequencies, 10000^(-f/8) in float32
V = Fraction(1, 2**24)


@dataclass(frozen=True)
class Stock:
    """transformers' own attention and rotary tables, in float64 but for what they do in float32.

    Attributes:
        attention: LlamaAttention, full (no mask), eager.
        rotary: LlamaRotaryEmbedding.
    """

    attention: nn.Module
    rotary: nn.Module

    @classmethod
    def of(cls, width: int, heads: int) -> "Stock":
        """With random weights."""
        llama = imported("transformers.models.llama.modeling_llama")
        config = llama.LlamaConfig(
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=1,
            head_dim=HEAD_DIM,
            attention_bias=True,
        )
        config._attn_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            attention = llama.LlamaAttention(config, layer_idx=0).double().eval()
        return cls(attention, llama.LlamaRotaryEmbedding(config))

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and weights for tokens (N, L, width)."""
        tables = self.rotary(tokens, torch.arange(tokens.shape[1]).unsqueeze(0))
        with torch.no_grad():
            output, weights = self.attention(tokens, tables, mask)
        return output, weights

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Those that are stored, float32 numbers."""
        found: Any = self.rotary.inv_freq
        return tuple(found.double().tolist())


def scale_for(stock: Stock, length: int) -> float:
    """s of equation (22): with it the softmax, in float32, is one-hot on so many tokens."""
    total, count = Fraction(0), len(stock.frequencies)
    for theta in stock.frequencies:
        total += Fraction(theta)
    with precision(128):
        gap = resonances.least_drop(stock.frequencies, max(1, length - 1))
        room = gap - ball(2 * V * (2 * (length - 1) * total + 10 * count))
        assert room > 0
        # Rounded to a float, and then up.
        scale = float((ball(Softmax().one_hot_gap(torch.float32)) / room).upper())
        return math.nextafter(scale, math.inf)


@dataclass(frozen=True)
class Sizes:
    """What of a convolution the construction needs."""

    taps: int
    padding: int
    dilation: int
    width: int

    @classmethod
    def of(cls, conv: nn.Conv1d) -> "Sizes":
        """The width holds the channels; LlamaConfig wants it to be a multiple of the heads."""
        assert not isinstance(conv.padding, str)
        (taps,), (padding,), (dilation,) = conv.kernel_size, conv.padding, conv.dilation
        width = taps * math.ceil(max(conv.in_channels, conv.out_channels) / taps)
        return cls(taps, padding, dilation, width)

    @property
    def reach(self) -> int:
        """From the first tap to the last."""
        return self.dilation * (self.taps - 1)


def tokens_of(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """The padded sequence as tokens."""
    sizes = Sizes.of(conv)
    ends, channels = (sizes.padding, sizes.padding), (0, sizes.width - conv.in_channels)
    return nn.functional.pad(x, (*ends, *channels)).transpose(1, 2)


def built(conv: nn.Conv1d, length: int, scale: float | None = None) -> Stock:
    """LlamaAttention with the weights of the construction."""
    sizes = Sizes.of(conv)
    stock = Stock.of(sizes.width, sizes.taps)
    attention: Any = stock.attention
    strength = scale_for(stock, length) if scale is None else scale
    shifts = sizes.dilation * torch.arange(sizes.taps, dtype=torch.float64) - sizes.padding
    turned = shifts.unsqueeze(1) * torch.tensor(stock.frequencies, dtype=torch.float64)
    # Layer scores are divided by the root of the head's dimension.
    queries = strength * math.sqrt(HEAD_DIM) * torch.cat([turned.cos(), turned.sin()], dim=1)
    key = torch.cat([torch.ones(HEAD_DIM // 2), torch.zeros(HEAD_DIM // 2)])
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.q_proj.bias.copy_(queries.flatten())
        attention.k_proj.bias.copy_(key)
        for channel in range(conv.in_channels):
            attention.v_proj.weight[channel, channel] = 1
        for tap in range(sizes.taps):
            block = attention.o_proj.weight[: conv.out_channels, tap * HEAD_DIM :]
            block[:, : conv.in_channels].copy_(conv.weight[:, :, tap])
        if conv.bias is not None:
            attention.o_proj.bias[: conv.out_channels].copy_(conv.bias)
    return stock


def at_outputs(conv: nn.Conv1d, length: int) -> slice:
    """The tokens that ask for an output: `padding` after the first tap."""
    sizes = Sizes.of(conv)
    return slice(sizes.padding, length - sizes.reach + sizes.padding)


def convolved(
    stock: Stock, conv: nn.Conv1d, x: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the layer makes of an image, and its weights, at the queries that a convolution has."""
    tokens = tokens_of(conv, x)
    output, weights = stock(tokens, mask)
    queries = at_outputs(conv, tokens.shape[1])
    return output[:, queries, : conv.out_channels].transpose(1, 2), weights[:, :, queries]


def aims(conv: nn.Conv1d, length: int) -> np.ndarray:
    """One-hot weights at o + tap * dilation of the padded sequence, (taps, outputs, keys)."""
    sizes = Sizes.of(conv)
    outputs, taps = np.arange(length - sizes.reach), np.arange(sizes.taps)
    keys = outputs[None] + sizes.dilation * taps[:, None]
    one_hot: np.ndarray = np.eye(length)[keys]
    return one_hot


def computes(stock: Stock, conv: nn.Conv1d, x: Tensor, mask: Tensor | None = None) -> bool:
    """Whether weights are exactly one-hot and the output is the convolution, bit for bit."""
    y, weights = convolved(stock, conv, x, mask)
    expected = aims(conv, weights.shape[-1])
    one_hot = all(np.array_equal(numbers(image), expected) for image in weights)
    return one_hot and not exact_error(numbers(y), convolve_module(conv, x)).any()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv1d, Tensor]:
    """Integers: kernels of up to 5, dilated, padded by at most what keeps their queries tokens."""
    taps, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, dilation * (taps - 1)))
    channels, out, n = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 20))
    n += max(0, dilation * (taps - 1) + 1 - 2 * padding - n)
    with torch.random.fork_rng(devices=[]):
        conv = nn.Conv1d(
            channels, out, taps, padding=padding, dilation=dilation, dtype=torch.float64
        )
    numbers_ = st.integers(-999, 999)
    with torch.no_grad():
        for parameter in conv.parameters():
            first, step = draw(numbers_), draw(numbers_)
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(((first + step * count) % 1999 - 999).view_as(parameter))
    count = torch.arange(2 * channels * n, dtype=torch.float64)
    return conv, (draw(numbers_) * count.square() % 1999 - 999).reshape(2, channels, n)


@exact
@given(case=convolutions())
def test_stock_rotary_attention_is_the_convolution_of_integers_bit_for_bit(
    case: tuple[nn.Conv1d, Tensor],
) -> None:
    conv, x = case
    assert computes(built(conv, tokens_of(conv, x).shape[1]), conv, x)
    record(dtype=torch.float64)


def sample() -> tuple[nn.Conv1d, Tensor]:
    """A kernel of three taps that are all different."""
    with torch.random.fork_rng(devices=[]):
        conv = nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 2.0, 4.0]]]))
        assert conv.bias is not None
        conv.bias.fill_(8.0)
    return conv, torch.arange(1.0, 31.0, dtype=torch.float64).reshape(1, 1, 30)


@exact
def test_stock_frequencies_are_the_standard_ones_in_float32() -> None:
    found = Stock.of(4, 1).frequencies
    with precision(128):
        for stored, standard in zip(found, resonances.standard(), strict=True):
            assert abs(arb(stored) - standard) < 8 * ball(V) * standard


@exact
@pytest.mark.parametrize("length", [2, 100, 4096])
def test_scale_grows_little_with_the_length(length: int) -> None:
    # 103.98 over the gap of 0.5148, and little more for a text.
    assert 103.97 / 0.5149 < scale_for(Stock.of(4, 1), length) < 203


@control
@pytest.mark.parametrize(
    ("name", "factor"), [("q_proj", -1.0), ("q_proj", 0.5), ("k_proj", 0.0), ("o_proj", 2.0)]
)
def test_wrong_constant_is_no_convolution(name: str, factor: float) -> None:
    conv, x = sample()
    stock = built(conv, 32)
    assert computes(stock, conv, x)
    getattr(stock.attention, name).bias.data.mul_(factor)
    assert not computes(stock, conv, x)


@control
def test_query_turned_the_other_way_is_no_convolution() -> None:
    conv, x = sample()
    stock = built(conv, 32)
    attention: Any = stock.attention
    attention.q_proj.bias.data.view(3, 2, 8)[:, 1].neg_()  # the sines
    assert not computes(stock, conv, x)


@control
def test_scale_for_a_gap_of_one_is_not_one_hot() -> None:
    conv, x = sample()
    assert not computes(built(conv, 32, scale=103.98), conv, x)


@control
def test_causal_mask_hides_the_taps_ahead() -> None:
    # The construction needs full attention, or a convolution that looks back alone.
    conv, x = sample()
    causal = torch.full((32, 32), -math.inf, dtype=torch.float64).triu(1)
    assert not computes(built(conv, 32), conv, x, causal)
