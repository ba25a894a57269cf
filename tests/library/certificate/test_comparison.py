"""The truth: the convolution itself, what stands at the targets, and how far pixels are apart."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions.certificate.comparison import Comparison
from constructions.formats import FORMATS
from tests.support.helpers import filled, integers
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.strategies import integer_cases


@given(data=st.data())
def test_truth_is_the_convolution_of_integers_exactly(data: st.DataObject) -> None:
    case = data.draw(integer_cases(data.draw(st.sampled_from(FORMATS))))
    comparison = Comparison.of(case.conv, case.x, case.output_size)
    truth = convolve_module(case.conv, case.x, case.output_size)
    assert comparison.exact.dtype == torch.float64
    assert (exact_error(numbers(comparison.exact), truth) == 0).all()
    assert comparison.window is None


@given(data=st.data())
def test_truth_is_the_convolution_of_the_limit(data: st.DataObject) -> None:
    case = data.draw(integer_cases(data.draw(st.sampled_from(FORMATS))))
    comparison = Comparison.of(case.conv, case.x, case.output_size)
    stencil = comparison.stencil
    y = stencil.convolve(comparison.limit)
    if stencil.bias is not None:
        y = y + stencil.bias.reshape(-1, *(1 for _ in y.shape[2:]))
    assert torch.equal(y.reshape(comparison.exact.shape), comparison.exact)


@given(data=st.data(), has_sink=st.booleans())
def test_spread_is_the_largest_distance_of_a_limit_from_what_a_head_can_see(
    data: st.DataObject, has_sink: bool
) -> None:
    case = data.draw(integer_cases(torch.float64).filter(lambda case: case.x.numel() > 0))
    comparison = Comparison.of(case.conv, case.x, case.output_size)
    limits = comparison.limit.flatten(2).numpy()
    pixels = comparison.view.image.flatten(2).numpy()
    sink = np.zeros((*pixels.shape[:2], int(has_sink)))
    visible = np.concatenate([limits, pixels, sink], axis=-1)
    largest = abs(limits[..., :, None] - visible[..., None, :]).max(axis=-1)
    found = comparison.spread(has_sink=has_sink).flatten(2).numpy()
    assert np.array_equal(found, largest)


def test_keys_are_the_pixels_and_a_sink_or_the_padded_grid() -> None:
    comparison = Comparison.of(filled(nn.Conv2d(2, 3, 3, padding=1)), integers(1, 2, 4, 5))
    view, height = comparison.seen_by("natural")
    assert (view.keys.shape, height) == ((4, 5), 0.5)
    assert torch.equal(view.values, comparison.view.image)
    view, height = comparison.seen_by("padded")
    assert (view.keys.shape, height) == ((6, 7), None)
    values = view.values
    assert torch.equal(values[..., 1:-1, 1:-1], comparison.view.image)
    assert values.abs().sum() == comparison.view.image.abs().sum()
