"""Score functions as encodings: a table of their values, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.encodings import Lattice, Quadratic, Scored, check_encoding
from tests.support.helpers import filled, integers, refused
from tests.support.oracle import convolve_module, exact_error, numbers

GRID = Lattice.box((6, 5))
SHIFTS = torch.cartesian_prod(*2 * (torch.arange(-1.0, 2.0, dtype=torch.float64),))


def city_block(displacements: Tensor) -> Tensor:
    """-(|i| + 2 |j|): integers, with no symmetry between the axes."""
    return -(displacements.abs() * displacements.new_tensor([1.0, 2.0])).sum(-1)


def squares(displacements: Tensor) -> Tensor:
    return -displacements.square().sum(-1)


def test_score_is_the_function_of_the_displacement_from_the_shift_clipped_at_its_reach() -> None:
    encoding = Scored(city_block, reach=(2, 3))
    points = torch.cartesian_prod(*2 * (torch.arange(-9.0, 10.0, dtype=torch.float64),))
    features, names = encoding.encode(points, SHIFTS, GRID)
    for shift, row in zip(SHIFTS, names @ features.T, strict=True):
        i, j = (points - shift).abs().T
        assert torch.equal(row, -(i.clamp(max=2) + 2 * j.clamp(max=3)))
    assert check_encoding(encoding, SHIFTS, GRID) == (3 + 4) * (3 + 6)
    assert (features.sum(-1) == 1).all()


@pytest.mark.parametrize(("score", "gap"), [(city_block, 1.0), (squares, 1.0)])
def test_gap_is_the_least_fall_from_the_peak(score: Any, gap: float) -> None:
    assert Scored(score, 2).gap(SHIFTS, GRID) == gap
    skewed = Scored(lambda d: 3 * score(d) - 0.5 * (d[:, 0] == 1), 2)
    assert skewed.gap(SHIFTS, GRID) == 3 * gap


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_saturated_layer_is_the_convolution_to_the_bit(mode: Any, stride: int) -> None:
    conv = filled(nn.Conv2d(2, 3, (3, 2), stride=stride, padding=1, padding_mode=mode))
    layer = attention_from_conv(conv, encoding=Scored(city_block, 2))
    x = integers(2, 2, 6, 5)
    assert layer.evaluation == "dense"
    assert (exact_error(numbers(layer(x)), convolve_module(conv, x)) == 0).all()


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
def test_soft_layer_is_within_its_certificate(sharpness: float) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1), 7)
    layer = attention_from_conv(conv, encoding=Scored(city_block, 2), sharpness=sharpness)
    certificate = certify(layer, conv, integers(2, 2, 6, 5))
    assert certificate.holds
    assert certificate.leak.max() > certificate.rounding.max()


def test_squares_within_their_reach_are_the_quadratic_encoding() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    options: dict[str, Any] = {"sharpness": 1.5, "boundary": "padded", "evaluation": "dense"}
    layers = [
        attention_from_conv(conv, encoding=e, **options) for e in (Scored(squares, 9), Quadratic())
    ]
    weights = [layer.attention_weights((4, 4)) for layer in layers]
    assert torch.equal(*weights)


def test_what_is_no_score_is_refused() -> None:
    conv: Any = nn.Conv2d(1, 1, 3)
    with refused(TypeError, "score", "'city'", "a function"):
        Scored("city", 2)  # type: ignore[arg-type]
    for reach in (1.5, (1, 2.0), True, ()):
        with refused(TypeError, "reach", repr(reach), "an integer"):
            Scored(squares, reach)  # type: ignore[arg-type]
    for none in (0, (3, 0)):
        with refused(ValueError, "reach", str(none), "1 or more"):
            Scored(squares, none)
    with refused(ValueError, "encoding", "of 3 axes", "one for each axis"):
        attention_from_conv(conv, encoding=Scored(squares, (1, 1, 1)))
    with refused(ValueError, "encoding", "1 at [-1.0, 0.0]", "largest value at 0 alone"):
        attention_from_conv(conv, encoding=Scored(lambda d: -d[:, 0] - d[:, 1].abs(), 1))
    with refused(ValueError, "encoding", "returns (729, 2)", "shape (729,)"):
        attention_from_conv(conv, encoding=Scored(lambda d: d, 3))
    with refused(ValueError, "encoding", "not finite", "a finite one"):
        attention_from_conv(conv, encoding=Scored(lambda d: squares(d) / math.inf - 1 / d[:, 0], 1))
    layer = attention_from_conv(nn.Conv2d(1, 1, 3), encoding=Scored(squares, 1))
    with refused(ValueError, "encoding", "meta", "can be read"):
        layer.to("meta")(torch.empty(1, 1, 5, 5, device="meta"))


def test_traced_layers_are_refused_with_the_reason() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3), encoding=Scored(squares, 1))
    with pytest.raises(ValueError, match="traced; accepted"):
        torch.export.export(layer, (torch.rand(1, 1, 5, 5),))
