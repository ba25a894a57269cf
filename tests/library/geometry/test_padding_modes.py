"""Borders continue the image as torch pads it, and leave the holes of a transposed convolution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import NO_PIXEL, PADDING_MODES, padded

MODES = pytest.mark.parametrize("mode", PADDING_MODES)
FARTHEST = {"zeros": 4, "replicate": 4, "reflect": -1, "circular": 0}
"""How far torch pads: any distance (here 4), or the size of the axis and this."""


def image_of(shape: tuple[int, ...]) -> Tensor:
    """Every entry another one, none zero."""
    return torch.arange(1.0, 1.0 + math.prod(shape)).reshape(shape)


def grown(shape: tuple[int, ...], padding: list[tuple[int, int]]) -> Lattice:
    sizes = tuple(low + n + high for n, (low, high) in zip(shape, padding, strict=True))
    return Lattice(sizes, (1,) * len(shape), tuple(-low for low, _ in padding))


@st.composite
def paddings(draw: st.DrawFn, mode: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """A spatial shape, and (low, high) for each axis, unequal on purpose, as far as torch pads."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    farthest = [FARTHEST[mode] + (0 if FARTHEST[mode] > 0 else n) for n in shape]
    sides = [draw(st.tuples(st.integers(0, f), st.integers(0, f))) for f in farthest]
    return shape, sides


@MODES
@given(data=st.data())
def test_padded_is_what_torch_pads(mode: str, data: st.DataObject) -> None:
    shape, padding = data.draw(paddings(mode))
    image = image_of((2, 3, *shape))
    sides = list(itertools.chain.from_iterable(reversed(padding)))
    expected = F.pad(image, sides, mode="constant" if mode == "zeros" else mode)
    actual = padded(image, Lattice.box(shape), grown(shape, padding), PADDING_MODES[mode])
    assert torch.equal(actual, expected)


@given(data=st.data())
def test_negative_padding_of_zeros_crops_as_torch_does(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    low = data.draw(st.integers(1 - n, 3))
    high = data.draw(st.integers(1 - n - min(low, 0), 3))
    image = image_of((1, 1, n))
    actual = padded(image, Lattice.box((n,)), grown((n,), [(low, high)]), PADDING_MODES["zeros"])
    assert torch.equal(actual, F.pad(image, (low, high)))


@given(data=st.data())
def test_spacing_of_pixels_leaves_holes_of_zeros(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    spacing = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    padding = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in shape]
    fine = tuple(s * (n - 1) + 1 for s, n in zip(spacing, shape, strict=True))
    image = image_of((2, 1, *shape))
    stuffed = image.new_zeros(2, 1, *fine)
    everywhere = slice(None)
    stuffed[(everywhere, everywhere, *(slice(None, None, s) for s in spacing))] = image
    actual = padded(
        image,
        Lattice(shape, spacing, (0,) * len(shape)),
        grown(fine, padding),
        PADDING_MODES["zeros"],
    )
    assert torch.equal(actual, F.pad(stuffed, list(itertools.chain(*reversed(padding)))))


@pytest.mark.parametrize(
    ("mode", "supplied"),
    [
        ("zeros", [NO_PIXEL, NO_PIXEL, NO_PIXEL, 0, 1, 2, 3, NO_PIXEL, NO_PIXEL, NO_PIXEL]),
        ("replicate", [0, 0, 0, 0, 1, 2, 3, 3, 3, 3]),
        ("reflect", [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]),
        ("circular", [1, 2, 3, 0, 1, 2, 3, 0, 1, 2]),
    ],
)
def test_border_names_the_pixel_that_supplies_each_key(mode: str, supplied: list[int]) -> None:
    assert PADDING_MODES[mode].pixels(torch.arange(-3, 7), 4).tolist() == supplied


def test_padded_image_keeps_dtype_and_every_bit() -> None:
    image = torch.tensor([[[-0.0, 5e-8, math.inf]]], dtype=torch.float16)
    keys = Lattice((5,), (1,), (-1,))
    copied = padded(image, Lattice.box((3,)), keys, PADDING_MODES["circular"])
    assert copied.dtype == image.dtype
    assert torch.equal(copied.view(torch.int16), image[..., [2, 0, 1, 2, 0]].view(torch.int16))


@pytest.mark.parametrize(("mode", "limit"), [("reflect", 2), ("circular", 3)])
@pytest.mark.parametrize("side", ["low", "high"])
def test_border_beyond_one_image_is_refused_as_torch_refuses_it(
    mode: str, limit: int, side: str
) -> None:
    image, beyond = image_of((1, 1, 2, 3)), limit + 1
    padding = (beyond, 0) if side == "low" else (0, beyond)
    with pytest.raises(RuntimeError):
        F.pad(image, (*padding, 0, 0), mode=mode)
    with pytest.raises(ValueError, match=mode) as caught:
        padded(image, Lattice.box((2, 3)), grown((2, 3), [(0, 0), padding]), PADDING_MODES[mode])
    for phrase in (f"padding of {beyond}", "3 pixels", "axis 1", f"at most {limit}"):
        assert phrase in str(caught.value)
