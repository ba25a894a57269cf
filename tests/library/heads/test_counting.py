"""A count is what exact linear algebra of its own finds, and its certificate proves it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions.heads import HeadCount, count, count_heads
from constructions.heads.rational import Dictionary, alternative
from tests.support.helpers import filled, refused
from tests.support.strategies import geometries
from theory import heads_count_the_rank_of_the_kernel as theory
from theory.tools import alternatives
from theory.tools.alternatives import rank

EVIDENCE = "heads_count_the_rank_of_the_kernel"
exact = pytest.mark.evidence(EVIDENCE, "exact")
control = pytest.mark.evidence(EVIDENCE, "control")

Matrix = list[list[Fraction]]


def rows_of(conv: Any) -> Matrix:
    """The taps that are not 0 as rows, in the order of their offsets, from torch's own weight."""
    weight = conv.weight.detach().double().numpy()
    taps = weight.reshape(*weight.shape[:2], -1)
    if conv.transposed:
        taps = taps[..., ::-1]
    rows = [taps[..., t].ravel() for t in range(taps.shape[-1])]
    return [[Fraction(float(v)) for v in row] for row in rows if row.any()]


def with_weight(conv: Any, numbers: Any) -> Any:
    """The convolution, its weight made of these numbers."""
    with torch.no_grad():
        conv.weight.copy_(torch.as_tensor(numbers).reshape(conv.weight.shape))
    return conv


def in_space(column: list[Fraction], count: HeadCount) -> bool:
    """Whether a column is a combination of those of the certificate."""
    taps = [list(row) for row in count.certificate.taps]
    return rank([[*row, v] for row, v in zip(taps, column, strict=True)]) == rank(taps)


@exact
@given(data=st.data())
def test_count_is_that_of_exact_linear_algebra(data: st.DataObject) -> None:
    conv: Any = data.draw(geometries()).build(torch.float64)
    size = conv.weight.numel()
    top = data.draw(st.sampled_from([1, 2, 7]))
    numbers = data.draw(st.lists(st.integers(-top, top), min_size=size, max_size=size))
    conv = with_weight(conv, torch.tensor(numbers, dtype=torch.float64))
    kernel, found = rows_of(conv), count(conv)
    assert found.rank == rank(kernel)
    assert found.certificate.check()
    assert found.certificate.residual == 0.0
    assert len(found.certificate.taps) == len(kernel)
    if kernel:
        assert found.case == found.certificate.case == theory.case(kernel)
        assert found.masked == theory.least_masked(kernel)
        assert found.masked_limit == found.rank + (found.case == "c")
    assert found.finite == theory.least_finite(kernel)
    assert found.signed == found.rank
    for column in zip(*kernel, strict=True):
        assert in_space(list(column), found)


@exact
@given(
    rows=st.lists(
        st.lists(st.integers(-3, 3), min_size=2, max_size=2).filter(any), min_size=3, max_size=7
    )
)
def test_alternatives_of_the_package_are_those_of_the_proof(rows: list[list[int]]) -> None:
    kernel = [[Fraction(v) for v in row] for row in rows]
    if rank(kernel) < 2:
        with pytest.raises(ZeroDivisionError):
            Dictionary(rows)
        return
    c, y = alternative(Dictionary(rows), rows)
    _, other_y = alternatives.alternative(kernel)
    # Where y is positive does not depend on how it was found, and it is zero elsewhere.
    assert [v > 0 for v in y] == [v > 0 for v in other_y]
    assert min(y) >= 0
    slack = [sum(a * b for a, b in zip(row, c, strict=True)) for row in rows]
    assert [s > 0 for s in slack] == [v == 0 for v in y]


def trained(taps: int, width: int, rank: int, seed: int = 0) -> Any:
    """A convolution of floats whose taps have a rank up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(taps, rank, generator=generator)
    numbers = (left @ torch.randn(rank, width * width, generator=generator)).T
    return with_weight(nn.Conv1d(width, width, taps), numbers.contiguous())


def test_rank_of_floats_is_that_of_their_singular_values_and_the_rest_is_told() -> None:
    for r in (1, 3, 7):
        conv = trained(11, 8, r)
        found = count(conv)
        values = np.linalg.svd(np.array(rows_of(conv), dtype=float), compute_uv=False)
        assert found.rank == r < min(values.shape)
        assert found.certificate.check()
        tail = float(np.linalg.norm(values[r:]))
        assert 0 < found.certificate.residual <= 2 * tail
        assert tail <= 2 * found.certificate.residual
    assert count(trained(9, 8, 9)).rank == 9


def test_generic_kernels_need_a_head_for_each_tap() -> None:
    for conv in (nn.Conv2d(3, 4, 3), nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(2, 5, 3)):
        found = count(filled(conv, 3) if conv.groups == 1 else conv)
        assert found.case == "a"
        assert found.masked == found.rank <= 9
        assert found.certificate.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_channels_of_half_precision_do_not_hide_the_rank(dtype: torch.dtype) -> None:
    # max(N, D) u is above 1 here, and every singular value is below that times the largest.
    generator = torch.Generator().manual_seed(0)
    conv = with_weight(
        nn.Conv2d(64, 64, 3).to(dtype), torch.randn(64, 64, 3, 3, generator=generator).to(dtype)
    )
    assert count(conv).rank == 9


def test_equal_taps_are_one_whatever_rounding_makes_of_their_singular_values() -> None:
    tap = [-1, 0, -2, -3, 4, 2, 0, -2, 2]
    conv = nn.ConvTranspose1d(3, 3, 2, dtype=torch.float64)
    found = count(with_weight(conv, torch.tensor(tap).repeat_interleave(2)))
    assert (found.rank, found.case, found.certificate.residual) == (1, "a", 0.0)
    assert found.certificate.check()


def test_kernel_of_one_tap_and_the_kernel_zero() -> None:
    one = count(with_weight(nn.Conv2d(1, 1, 1), torch.tensor([-3.0])))
    assert (one.rank, one.case, one.masked, one.masked_limit, one.finite) == (1, "a", 1, 1, 2)
    zero = count(with_weight(nn.Conv2d(2, 2, 3), torch.zeros(36)))
    assert (zero.rank, zero.case, zero.masked, zero.masked_limit, zero.finite) == (0, "a", 0, 0, 0)
    assert one.certificate.check()
    assert zero.certificate.check()


# A certificate that is wrong ----------------------------------------------------------------------

SOBEL = [-1, 0, 1, -2, 0, 2, -1, 0, 1]


@control
def test_certificate_that_is_changed_does_not_check() -> None:
    found = count(with_weight(nn.Conv2d(1, 1, 3), torch.tensor(SOBEL).float())).certificate
    assert found.check()
    assert found.case == "c"
    y = found.dual
    wrong = [
        replace(found, dual=tuple(-v for v in y)),
        replace(found, dual=(-y[0], *y[1:])),
        replace(found, dual=(2 * y[0], *y[1:])),
        replace(found, dual=(Fraction(0),) * len(y)),
        replace(found, dual=y[:-1]),
        replace(found, primal=(Fraction(1),)),
        replace(found, primal=(Fraction(0), Fraction(0))),
        replace(found, taps=(*found.taps[:-1], (Fraction(3),))),
        replace(found, taps=tuple((*row, *row) for row in found.taps), columns=(0, 0)),
    ]
    assert [certificate.check() for certificate in wrong] == [False] * len(wrong)


@control
def test_count_of_the_rank_alone_is_not_the_count() -> None:
    found = count(with_weight(nn.Conv2d(1, 1, 3), torch.tensor(SOBEL).float()))
    assert (found.rank, found.masked, found.masked_limit, found.finite) == (1, 2, 2, 2)


# A network ----------------------------------------------------------------------------------------


def test_count_of_a_network_is_a_table_of_all_its_convolutions() -> None:
    shared = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(
        with_weight(nn.Conv2d(1, 1, 3), torch.tensor(SOBEL).float()),
        nn.ReLU(),
        nn.Conv2d(1, 4, 1),
        shared,
        nn.Sequential(shared, nn.AvgPool2d(2), nn.Linear(3, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    )
    found = count_heads(model)
    assert list(found) == ["0", "2", "3"]
    assert [found[path].masked for path in found] == [2, 1, 9]
    assert list(found.left) == ["5"]
    lines = str(found).splitlines()
    assert lines[1].split() == ["0", "9", "1", "c", "2", "2", "1"]
    assert lines[4].split() == ["all", "19", "11", "12", "14", "11"]
    assert lines[5].startswith("5: ")
    with refused(TypeError, "model", "int", "Module"):
        count_heads(3)  # type: ignore[arg-type]


def test_work_is_in_the_taps_and_not_in_the_channels() -> None:
    # As the widest of a ResNet-50: were it quadratic in 262144 numbers, it would not end.
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(512, 512, 3)
    conv = with_weight(conv, torch.randn(512 * 512 * 9, generator=generator))
    before = time.process_time()
    found = count(conv)
    assert (found.rank, found.masked) == (9, 9)
    assert len(found.certificate.columns) == 9
    assert time.process_time() - before < 30


REFUSALS: dict[str, tuple[Any, str, str, str]] = {
    "a pooling": (nn.AvgPool2d(2), "conv", "average pooling", "a convolution"),
    "a linear layer": (nn.Linear(2, 2), "conv", "Linear", "nn.Conv2d"),
}


@pytest.mark.parametrize(("conv", "argument", "told", "accepted"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_convolution_is_refused(
    conv: Any, argument: str, told: str, accepted: str
) -> None:
    with refused(TypeError, argument, told, accepted):
        count(conv)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    conv = with_weight(nn.Conv1d(1, 1, 2), torch.tensor([1.0, value]))
    with refused(ValueError, "conv.weight", "infinite or NaN", "finite"):
        count(conv)
    with refused(ValueError, "conv", "meta", "numbers"):
        count(nn.Conv1d(1, 1, 2, device="meta"))
