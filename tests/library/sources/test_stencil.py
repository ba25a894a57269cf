"""The stencil of a convolution is its list of taps: every option is an offset or a lattice."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.geometry.padding_modes import PADDING_MODES, padded
from constructions.sources import stencil_of
from constructions.sources.convolutions import geometry_of
from constructions.sources.sums import plain_sum
from tests.support.matrix_units import HAS_NNPACK, without_onednn
from tests.support.oracle import convolve_module, numbers
from tests.support.strategies import Case, Convolution, integer_cases


@dataclass(frozen=True)
class Row:
    """What one option of torch means, worked out by hand on an axis of 5 pixels.

    Attributes:
        conv: a convolution with a single spatial axis.
        offsets: δ = k - q of every tap.
        queries: the positions of the outputs.
        keys: the first and the last key.
        pixels: the first and the last pixel, and their spacing.
    """

    conv: Convolution
    offsets: list[int]
    queries: list[int]
    keys: tuple[int, int]
    pixels: tuple[int, int, int] = (0, 4, 1)


def conv(kernel: int, **options: Any) -> nn.Conv1d:
    return nn.Conv1d(1, 1, kernel, **options)


def transposed(kernel: int, **options: Any) -> nn.ConvTranspose1d:
    return nn.ConvTranspose1d(1, 1, kernel, **options)


TABLE = {
    "one tap": Row(conv(1), [0], [0, 1, 2, 3, 4], (0, 4)),
    "unpadded": Row(conv(3), [0, 1, 2], [0, 1, 2], (0, 4)),
    "padded": Row(conv(3, padding=1), [-1, 0, 1], [0, 1, 2, 3, 4], (-1, 5)),
    "padded by more than the kernel": Row(conv(1, padding=2), [-2], [*range(9)], (-2, 6)),
    "even": Row(conv(2, padding=1), [-1, 0], [0, 1, 2, 3, 4, 5], (-1, 5)),
    "strided": Row(conv(3, padding=1, stride=2), [-1, 0, 1], [0, 2, 4], (-1, 5)),
    "strided past the end": Row(conv(2, stride=3), [0, 1], [0, 3], (0, 4)),
    "dilated": Row(conv(3, padding=2, dilation=2), [-2, 0, 2], [0, 1, 2, 3, 4], (-2, 6)),
    "valid": Row(conv(4, padding="valid"), [0, 1, 2, 3], [0, 1], (0, 4)),
    "same, odd": Row(conv(3, padding="same"), [-1, 0, 1], [0, 1, 2, 3, 4], (-1, 5)),
    "same, even: one more at the end": Row(
        conv(4, padding="same"), [-1, 0, 1, 2], [0, 1, 2, 3, 4], (-1, 6)
    ),
    "same, dilated and even": Row(
        conv(2, padding="same", dilation=3), [-1, 2], [0, 1, 2, 3, 4], (-1, 6)
    ),
    "transposed": Row(transposed(3), [-2, -1, 0], [*range(7)], (-2, 6)),
    "transposed, cropped": Row(transposed(3, padding=1), [-1, 0, 1], [*range(5)], (-1, 5)),
    "transposed, cropped into the image": Row(transposed(1, padding=1), [1], [0, 1, 2], (1, 3)),
    "transposed, strided": Row(
        transposed(3, stride=2), [-2, -1, 0], [*range(11)], (-2, 10), (0, 8, 2)
    ),
    "transposed, output padded": Row(
        transposed(2, stride=3, output_padding=2), [-1, 0], [*range(16)], (-1, 15), (0, 12, 3)
    ),
    "transposed, dilated": Row(transposed(2, dilation=3), [-3, 0], [*range(8)], (-3, 7)),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=list(TABLE))
def test_option_is_offsets_and_lattices(row: Row) -> None:
    geometry = geometry_of(row.conv)
    keys, queries, pixels = geometry.targets((5,)), geometry.queries((5,)), geometry.pixels((5,))
    assert geometry.offsets().tolist() == [[offset] for offset in row.offsets]
    assert queries.axes()[0].tolist() == row.queries
    assert (keys.origin[0], keys.last[0], keys.spacing[0]) == (*row.keys, 1)
    assert (pixels.origin[0], pixels.last[0], pixels.spacing[0]) == row.pixels
    assert queries.shape == row.conv(torch.zeros(1, 5)).shape[1:]


def test_axes_have_their_own_options_and_taps_are_row_major() -> None:
    geometry = geometry_of(nn.Conv2d(1, 1, (2, 3), stride=(1, 2), padding=(0, 2), dilation=(4, 1)))
    assert geometry.offsets().tolist() == [
        list(tap) for tap in itertools.product([0, 4], [-2, -1, 0])
    ]
    assert geometry.queries((6, 5)).axes()[0].tolist() == [0, 1]
    assert geometry.queries((6, 5)).axes()[1].tolist() == [0, 2, 4, 6]


@given(case=st.one_of(integer_cases(torch.float64), integer_cases(torch.float32)))
def test_stencil_convolves_integers_as_torch_and_the_oracle_bit_for_bit(case: Case) -> None:
    stencil = stencil_of(case.conv)
    geometry, d = stencil.geometry, stencil.geometry.dimension
    spatial = tuple(case.x.shape[-d:])
    if case.output_size is not None:
        geometry = geometry.with_output_size(spatial, case.output_size)
    image = case.x if case.x.dim() == d + 2 else case.x[None]
    at_keys = padded(image, geometry.pixels(spatial), geometry.targets(spatial), stencil.border)
    y = stencil.convolve(at_keys)
    if stencil.bias is not None:
        y = y + stencil.bias.reshape(-1, *[1] * d)
    assert y.shape[2:] == geometry.queries(spatial).shape
    y = y.reshape(case.run(case.conv).shape)
    assert torch.equal(y, case.run(case.conv))
    exact = convolve_module(case.conv, case.x, case.output_size)
    assert numbers(y).tolist() == exact.nearest().tolist()


def test_matrices_are_the_blocks_of_the_kernel_in_the_order_of_the_offsets() -> None:
    conv = nn.Conv2d(4, 6, (2, 3), groups=2)
    matrices = stencil_of(conv).matrices
    assert matrices.shape == (6, 2, 2, 3)
    for tap, (i, j) in enumerate(itertools.product(range(2), range(3))):
        for group in range(2):
            block = conv.weight[3 * group : 3 * group + 3, :, i, j]  # (out, in) of the group
            assert torch.equal(matrices[tap, group], block.T)


def test_matrices_of_a_transposed_convolution_are_in_the_order_of_the_offsets() -> None:
    conv = nn.ConvTranspose1d(4, 6, 3, groups=2)  # the offset of index j is -j
    matrices = stencil_of(conv).matrices
    assert matrices.shape == (3, 2, 2, 3)
    for tap, j in enumerate([2, 1, 0]):
        for group in range(2):
            assert torch.equal(matrices[tap, group], conv.weight[2 * group : 2 * group + 2, :, j])


def test_stencil_describes_its_convolution() -> None:
    stencil = stencil_of(nn.Conv2d(4, 6, (2, 3), groups=2, padding_mode="circular"))
    assert (stencil.in_channels, stencil.out_channels, stencil.groups) == (4, 6, 2)
    assert stencil.border is PADDING_MODES["circular"]
    assert stencil.offsets.shape == (stencil.geometry.taps, stencil.geometry.dimension) == (6, 2)


@pytest.mark.parametrize("conv", [nn.Conv1d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1)], ids=repr)
def test_stencil_shares_no_memory_with_the_convolution(conv: Convolution) -> None:
    stencil = stencil_of(conv)
    assert stencil.bias is not None
    assert not stencil.matrices.requires_grad
    kept = stencil.matrices.clone(), stencil.bias.clone()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.fill_(7.0)
    assert torch.equal(stencil.matrices, kept[0])
    assert torch.equal(stencil.bias, kept[1])


def test_output_size_chooses_among_the_outputs_of_one_stride() -> None:
    conv = nn.ConvTranspose2d(1, 1, 3, stride=(2, 3), output_padding=1)
    geometry = geometry_of(conv)
    for size in itertools.product([7, 8], [9, 10, 11]):
        for given_size in (size, (1, *size), (4, 1, *size)):
            chosen = geometry.with_output_size((3, 3), given_size)
            assert chosen.queries((3, 3)).shape == size
        assert conv(torch.zeros(1, 3, 3), output_size=size).shape[1:] == size
    for size in itertools.product([6, 7, 8, 9], [8, 9, 10, 11, 12]):
        if size[0] in (7, 8) and size[1] in (9, 10, 11):
            continue
        with pytest.raises(ValueError, match="output_size"):
            geometry.with_output_size((3, 3), size)


# Plain sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 1, 15, 16, 30, 31])
def test_a_convolution_is_asked_for_fewer_images_than_torch_transforms(images: int) -> None:
    asked: list[int] = []

    def convolution(part: Tensor) -> Tensor:
        asked.append(len(part))
        return part * 2

    x = torch.arange(float(images)).reshape(-1, 1)
    assert torch.equal(plain_sum(convolution, x), x * 2)
    assert asked == [images]  # with oneDNN all at once
    asked.clear()
    with without_onednn():
        assert torch.equal(plain_sum(convolution, x), x * 2)
    assert sum(asked) == images
    if HAS_NNPACK:
        assert max(asked) < 16


@pytest.mark.parametrize("sharpness", [None, 40.0], ids=["saturated", "sharpness 40"])
@given(case=integer_cases(torch.float32), images=st.integers(16, 40))
def test_integers_are_convolved_exactly_without_onednn(
    case: Case, images: int, sharpness: float | None
) -> None:
    batched = case.x.dim() == case.conv.weight.dim()
    one = (case.x if batched else case.x.unsqueeze(0))[:1]
    x = torch.cat([one.roll(n, -1) for n in range(images)]) if len(one) else one
    size = case.output_size  # of the spatial axes alone, since the images are batched
    size = None if size is None else size[-(x.dim() - 2) :]
    layer = attention_from_conv(case.conv, sharpness=sharpness)
    if sharpness is None:
        with without_onednn():
            found = layer(x) if size is None else layer(x, size)
        exact = convolve_module(case.conv, x, size)
        assert np.array_equal(numbers(found), exact.nearest())  # integers, which round not
    else:
        certificate = certify(layer, case.conv, x, output_size=size)
        with without_onednn():
            bare = certify(layer, case.conv, x, output_size=size)
        assert certificate.holds
        assert bare.holds
