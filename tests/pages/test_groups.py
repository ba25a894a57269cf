"""The group convolution of the page is one, by an independent one that turns its kernels.

Evidence for T24: offsets that depend on the query's orientation alone.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.helpers import integers
from tests.support.ledger import ROOT
from tests.support.oracle import convolve, numbers

SLUG = "four_score_terms_are_four_filters"
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

PAGE = ROOT / "docs" / "groups.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names of the page's code, run once."""
    names: dict[str, Any] = {}
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def by_turned_kernels(
    x: NDArray[Any], kernels: list[NDArray[Any]], bias: NDArray[Any]
) -> NDArray[Any]:
    """Planes of orientations, correlated with kernels that are turned themselves.

    R takes rows to columns, (i, j) to (-j, i), so X at q + R^θ u with the entry of u is X at q + v
    with the entry of R^-θ v: the kernel turned by θ quarters against the clock.
    """
    planes = []
    for turn in range(4):
        total = np.zeros((kernels[0].shape[0], *x.shape[2:4]), dtype=object)
        total += bias.reshape(-1, 1, 1)
        for s, kernel in enumerate(kernels):
            own = np.rot90(kernel, turn, axes=(2, 3))
            seen = x[0, ..., (turn + s) % 4]
            total = total + convolve(seen, own, padding=1, padding_mode="replicate")
        planes.append(total)
    return np.stack(planes, axis=-1)


@exact
@given(pixels=st.binary(min_size=200, max_size=200))
def test_layer_is_the_convolution_with_turned_kernels(page: dict[str, Any], pixels: bytes) -> None:
    x = (torch.tensor(list(pixels)) % 7 - 3).float().reshape(1, 2, 5, 5, 4)
    with torch.no_grad():
        y = page["group_convolution"](page["layers"], x)
    kernels = [numbers(layer.layer.weight)[:, :2, :, :, 0] for layer in page["layers"]]
    bias = numbers(page["layers"][0].layer.bias)
    wanted = by_turned_kernels(
        numbers(x).astype(int), [k.astype(int) for k in kernels], bias.astype(int)
    )
    assert np.array_equal(numbers(y[0]), wanted.astype(float))


@exact
def test_lifting_is_the_image_correlated_with_each_turned_kernel(page: dict[str, Any]) -> None:
    image = integers(1, 2, 5, 5)
    lifting = page["layers"][0]
    with torch.no_grad():
        y = lifting(image.unsqueeze(-1).expand(-1, -1, -1, -1, 4), page["offsets"](0))
    kernel = numbers(lifting.layer.weight)[:, :2, :, :, 0].astype(int)
    bias = numbers(lifting.layer.bias).astype(int)
    for turn in range(4):
        wanted = convolve(
            numbers(image[0]).astype(int),
            np.rot90(kernel, turn, axes=(2, 3)),
            bias,
            padding=1,
            padding_mode="replicate",
        )
        assert np.array_equal(numbers(y[0, ..., turn]), wanted.astype(float))


@control
def test_turning_the_wrong_way_is_another_layer(page: dict[str, Any]) -> None:
    x = integers(1, 2, 5, 5, 4)
    wrong = [page["offsets"](s).flip(-1) for s in range(4)]
    with torch.no_grad():
        right = page["group_convolution"](page["layers"], x)
        other = sum(layer(x, p) for layer, p in zip(page["layers"], wrong, strict=True))
    assert not torch.equal(right, other)
