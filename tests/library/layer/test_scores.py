"""The four score terms are the paper's, held against its equations over Python's integers.

Scores are made visible by a normaliser that returns them, and compared bit for bit.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.formats import accumulator
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import Scores, enlivened, filled, integers, papers_layer, refused


def positional() -> MultiHeadSelfAttention:
    conv = filled(nn.Conv2d(4, 6, (2, 3), stride=(1, 2)))
    return papers_layer(conv, sharpness=0.5)


def image() -> Tensor:
    return integers(2, 4, 3, 4)


@dataclass(frozen=True)
class Placed:
    """A convolution padded by zeros or the nearest pixel, and its tokens, by definition."""

    conv: Any
    shape: tuple[int, ...]

    def points(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Any:
        return list(itertools.product(*map(range, starts, stops, steps)))

    @property
    def keys(self) -> Any:
        stops = [n + p for n, p in zip(self.shape, self.conv.padding, strict=True)]
        return self.points([-p for p in self.conv.padding], stops, [1] * len(self.shape))

    @property
    def queries(self) -> Any:
        reach = [
            r * (k - 1) for r, k in zip(self.conv.dilation, self.conv.kernel_size, strict=True)
        ]
        sizes = zip(self.shape, self.conv.padding, reach, strict=True)
        stops = [n + 2 * p - far for n, p, far in sizes]
        return self.points([0] * len(self.shape), stops, self.conv.stride)

    @property
    def shifts(self) -> Any:
        taps = itertools.product(*map(range, self.conv.kernel_size))
        return [
            tuple(
                j * r - p
                for j, r, p in zip(tap, self.conv.dilation, self.conv.padding, strict=True)
            )
            for tap in taps
        ]

    def at_query(self, image: Any, position: tuple[int, ...]) -> list[int]:
        """X_q: the channels at a position, zeros beyond the image."""
        if not all(0 <= i < n for i, n in zip(position, self.shape, strict=True)):
            return [0] * len(image)
        return [int(channel[position]) for channel in image]

    def at_key(self, image: Any, position: tuple[int, ...]) -> list[int]:
        """X_k: the same, continued as the convolution pads."""
        if self.conv.padding_mode == "replicate":
            bounds = zip(position, self.shape, strict=True)
            position = tuple(min(max(i, 0), n - 1) for i, n in bounds)
        return self.at_query(image, position)


def row_times(vector: Sequence[int], matrix: Any) -> list[int]:
    """vector^T matrix."""
    columns = zip(*matrix, strict=True)
    return [sum(v * int(m) for v, m in zip(vector, column, strict=True)) for column in columns]


def dot(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True))


def scores_of_the_paper(
    layer: MultiHeadSelfAttention, placed: Placed, image: Tensor, sharpness: int
) -> list[Any]:
    """arXiv 1911.03584, eq. 8, term by term over Python's integers: (heads, queries, keys).

    A = X_q W_qry W_key^T X_k^T + X_q W_qry Ŵ_key^T r_δ + u^T W_key^T X_k^T + v^T Ŵ_key^T r_δ,
    centred: less its last term at δ = Δ.
    """

    def features(delta: Sequence[int]) -> list[int]:
        return [sum(t * t for t in delta), *delta]

    parameters: dict[str, Any] = {n: p.detach().tolist() for n, p in layer.named_parameters()}
    scores = []
    for h, shift in enumerate(placed.shifts):
        u = [int(entry) for entry in parameters["content_bias"][h]]
        v = [-sharpness, *(2 * sharpness * t for t in shift)]
        at_shift = row_times(features(shift), parameters["positional_key"][h])
        rows = []
        for q in placed.queries:
            query = row_times(placed.at_query(image, q), parameters["query"][h])
            row = []
            for k in placed.keys:
                key = row_times(placed.at_key(image, k), parameters["key"][h])
                delta = [a - b for a, b in zip(k, q, strict=True)]
                positional = row_times(features(delta), parameters["positional_key"][h])
                row.append(
                    dot(query, key)
                    + dot(query, positional)
                    + dot(u, key)
                    + dot(v, positional)
                    - dot(v, at_shift)
                )
            rows.append(row)
        scores.append(rows)
    return scores


PLACED = {
    "1-D, queries beyond the image": Placed(nn.Conv1d(2, 1, 2, padding=2), (3,)),
    "1-D, replicated": Placed(nn.Conv1d(2, 1, 2, padding=2, padding_mode="replicate"), (3,)),
    "2-D, strided and dilated": Placed(
        nn.Conv2d(2, 4, (2, 1), stride=(1, 2), dilation=(2, 1), padding=(1, 0), groups=2), (3, 3)
    ),
    "3-D": Placed(nn.Conv3d(1, 1, (1, 2, 2)), (2, 2, 3)),
}
EVERY_PLACED = pytest.mark.parametrize("placed", PLACED.values(), ids=list(PLACED))


@EVERY_PLACED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_four_score_terms_are_the_paper_s_bit_for_bit(placed: Placed, dtype: torch.dtype) -> None:
    conv = filled(copy.deepcopy(placed.conv)).to(dtype)
    layer = enlivened(papers_layer(conv, normaliser=Scores(), sharpness=3))
    x = integers(2, conv.in_channels, *placed.shape, dtype=dtype)
    scores = layer.attention_weights(placed.shape, x=x)
    assert scores.dtype == dtype
    assert scores.tolist() == [scores_of_the_paper(layer, placed, one, 3) for one in x]


@EVERY_PLACED
def test_output_is_the_paper_s_concatenation_bit_for_bit(placed: Placed) -> None:
    """Y_q = concat_h(A^h X W_val^h) W_out + b_out, with the scores as weights."""
    conv = filled(copy.deepcopy(placed.conv)).double()
    layer = enlivened(papers_layer(conv, normaliser=Scores(), sharpness=3))
    x = integers(1, conv.in_channels, *placed.shape, dtype=torch.float64)
    tokens = [placed.at_key(x[0], k) for k in placed.keys]
    assert layer.bias is not None
    expected = [[int(b)] * len(placed.queries) for b in layer.bias]
    outputs = conv.out_channels // conv.groups
    for h, rows in enumerate(scores_of_the_paper(layer, placed, x[0], 3)):
        for (q, row), group in itertools.product(enumerate(rows), range(conv.groups)):
            seen = row_times(row, tokens)
            width = conv.in_channels // conv.groups
            value, output = (factor[h, group].tolist() for factor in layer.head_matrices())
            values = row_times(seen[group * width :][:width], value)
            for o, y in enumerate(row_times(values, output)):
                expected[group * outputs + o][q] += y
    assert layer(x).flatten(2)[0].tolist() == expected


def test_weights_with_content_are_the_softmax_of_the_scores() -> None:
    conv, x = filled(nn.Conv2d(4, 2, 3)), image() / 8
    scores = enlivened(papers_layer(conv, normaliser=Scores(), sharpness=0.5))
    weights = enlivened(papers_layer(conv, sharpness=0.5)).attention_weights((3, 4), x=x)
    assert torch.equal(weights, scores.attention_weights((3, 4), x=x).softmax(-1))


def test_layer_with_live_content_needs_the_input_for_its_weights() -> None:
    layer = enlivened(positional())
    with refused(ValueError, "x is None", "None", "the input"):
        layer.attention_weights((3, 4))
    assert layer.attention_weights((3, 4), x=image()).shape == (2, 6, 2, 12)
    with refused(ValueError, "x has spatial shape", "(3, 4)", "spatial_shape, (4, 3)"):
        layer.attention_weights((4, 3), x=image())


def test_content_that_is_being_trained_is_live_though_still_zero() -> None:
    layer = positional()
    layer.query.requires_grad_()
    with refused(ValueError, "x is None", "None", "content terms are live"):
        layer.attention_weights((3, 4))


def test_layer_without_content_takes_the_input_for_its_weights_and_ignores_it() -> None:
    layer = positional()
    weights = layer.attention_weights((3, 4))
    assert torch.equal(layer.attention_weights((3, 4), x=image()), weights)
    assert torch.equal(layer.attention_weights((3, 4), x=image()[0]), weights)


# Sharpness at the edge ----------------------------------------------------------------------------

SINGLE, DOUBLE = torch.float32, torch.float64


def steep(dtype: torch.dtype, mode: Any, **options: Any) -> tuple[nn.Conv2d, Tensor, Any]:
    """A convolution of integers, its input, and the layer with the given options."""
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode, dtype=dtype))
    assert isinstance(conv, nn.Conv2d)
    return conv, integers(2, 2, 5, 6, dtype=dtype), attention_from_conv(conv, **options)


@pytest.mark.parametrize("evaluation", ["dense", "factored", "fused"])
@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float16, SINGLE, DOUBLE], ids=str)
def test_the_largest_sharpness_selects_as_any_one_hot_one(
    dtype: torch.dtype, mode: str, evaluation: str
) -> None:
    largest = torch.finfo(accumulator(dtype)).max
    for part in (1.0, 0.5, 2.0**-27, 2.0**-29, 2.0**-60):
        conv, x, layer = steep(
            dtype, mode, sharpness=largest * part, evaluation=evaluation, boundary="padded"
        )
        assert torch.equal(layer(x), attention_from_conv(conv, evaluation="dense")(x))


@pytest.mark.parametrize("name", ["relu", "sigmoid", "sparsemax", "entmax15", "top1"])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_every_normaliser_takes_the_largest_sharpness(dtype: torch.dtype, name: str) -> None:
    conv, x, layer = steep(
        dtype, "zeros", sharpness=torch.finfo(dtype).max, normaliser=name, evaluation="dense"
    )
    assert torch.equal(layer(x), attention_from_conv(conv)(x))


@pytest.mark.parametrize(
    "sharpness", [math.nextafter(torch.finfo(SINGLE).max, math.inf), 1e39, 1.7e308, 10**40]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, SINGLE], ids=str)
def test_a_sharpness_beyond_the_format_of_the_scores_is_refused(
    dtype: torch.dtype, sharpness: float
) -> None:
    for options in ({}, {"evaluation": "fused"}, {"normaliser": "relu"}, {"evaluation": "dense"}):
        with pytest.raises(ValueError, match=r"accepted: at most 3\.40282e") as error:
            steep(dtype, "circular", sharpness=sharpness, **options)
        assert str(sharpness) in str(error.value)
    if 1e39 <= sharpness < 1e308:  # what rounds to the largest number does no harm
        _, x, layer = steep(DOUBLE, "zeros", sharpness=sharpness, evaluation="dense")
        assert layer(x).isfinite().all()
        with pytest.raises(ValueError, match=r"sharpness of at most 3\.40282e"):
            layer.to(dtype)(x.to(dtype))


@pytest.mark.parametrize("evaluation", ["dense", "factored"])
def test_a_scale_that_a_small_gap_makes_overflow_is_refused_where_the_keys_are_known(
    evaluation: str,
) -> None:
    largest = sys.float_info.max
    conv, x, layer = steep(
        DOUBLE, "circular", sharpness=1.7e308, boundary="natural", evaluation="dense"
    )
    gap = layer.gap(layer.view(x).keys)
    assert gap < 1
    accepted = re.escape(f"at most {gap * largest:.6g}")
    with pytest.raises(ValueError, match=f"gap of 0.5 .*{accepted}"):
        layer(x)
    _, x, at_most = steep(
        DOUBLE,
        "circular",
        sharpness=math.nextafter(gap * largest, 0),
        boundary="natural",
        evaluation=evaluation,
    )
    assert torch.equal(at_most(x), attention_from_conv(conv)(x))
