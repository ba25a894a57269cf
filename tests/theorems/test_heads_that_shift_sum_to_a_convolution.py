"""Heads that each put all their attention on one shift, one head for every offset of the kernel, sum to the convolution exactly, in every ring, commutative or not.

T1, `docs/theorems/heads_that_shift_sum_to_a_convolution.md`. The heads are saturated (T8), which
makes them one-hot, and the data are integers, which makes the ring.
"""  # noqa: E501, the claim is one sentence

import copy

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support import formal, heads
from tests.support.helpers import edit_matrices, papers_layer
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import CONVOLUTIONS, Case, geometries, integer_cases
from theory import heads_that_shift_sum_to_a_convolution as theory
from theory.tools.proof import Proof, ProofError, identical

SLUG = "heads_that_shift_sum_to_a_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
both_formats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def agrees(layer: nn.Module, case: Case) -> bool:
    """Whether the layer returns the oracle's integers, bit for bit up to the sign of zero."""
    with torch.no_grad():
        y = numbers(case.run(layer))
    return not exact_error(y, convolve_module(case.conv, case.x, case.output_size)).any()


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@control
def test_proof_tells_a_ring_that_does_not_commute() -> None:
    a, b = theory.symbol("a"), theory.symbol("b")
    assert not identical(a * b, b * a)


@control
def test_proof_rejects_the_opposite_order_of_a_head_s_matrices() -> None:
    row, value, output = (theory.matrix(name, 2, 2) for name in "xvo")
    assert identical(theory.layer([row], [value], [output], sp.zeros(2)), row * (value * output))
    assert not identical(theory.layer([row], [value], [output], sp.zeros(2)), row * output * value)


@control
def test_unknown_is_not_proven() -> None:
    undecided = sp.Symbol("x", real=True).is_positive
    assert undecided is None
    with pytest.raises(ProofError, match=r"equation \(3\)"):
        Proof().check("a real number is positive", undecided, equation=3)


# The construction ---------------------------------------------------------------------------------


@exact
@both_formats
@given(data=st.data())
def test_every_head_attends_its_offset_and_nothing_else(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    geometry = data.draw(geometries(), label="geometry")
    case = Case(
        geometry.build(dtype), torch.zeros(geometry.shape, dtype=dtype), geometry.output_size
    )
    targets = heads.Targets.of(case)
    layer = papers_layer(case.to(device).conv)
    size = None if case.output_size is None else heads.output_shape(case)
    weights = layer.attention_weights(case.x.shape[-len(targets.grid) :], output_size=size)
    record(device=device, dtype=dtype)
    np.testing.assert_array_equal(numbers(weights), targets.one_hot(), strict=True)


@exact
@both_formats
@given(data=st.data())
def test_heads_in_any_order_sum_to_the_convolution(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype), label="case").to(device)
    layer = papers_layer(case.conv)
    order = data.draw(st.permutations(range(layer.num_heads)), label="order")
    layer.positional_shift = layer.positional_shift[order]
    edit_matrices(layer, lambda matrices: matrices.copy_(matrices[order]))
    record(device=device, dtype=dtype)
    assert agrees(layer, case)


@exact
@both_formats
@given(data=st.data())
def test_heads_sent_to_one_offset_add_up(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    # Equation (7) with any f from heads to offsets: the kernel at an offset is the sum of the
    # matrices that f sends there.
    case = data.draw(integer_cases(dtype, CONVOLUTIONS), label="case").to(device)
    layer = papers_layer(case.conv)
    taps = range(layer.num_heads)
    to = st.lists(st.sampled_from(taps), min_size=len(taps), max_size=len(taps))
    sent = data.draw(to, label="f")
    layer.positional_shift = layer.positional_shift[sent]
    summed = copy.deepcopy(case.conv)
    with torch.no_grad():
        matrices = case.conv.weight.flatten(2)
        index = torch.tensor(sent, device=device)
        kernel = torch.zeros_like(matrices).index_add(2, index, matrices)
        summed.weight.copy_(kernel.view_as(summed.weight))
    record(device=device, dtype=dtype)
    assert agrees(layer, Case(summed, case.x, case.output_size))


# What the checks reject ---------------------------------------------------------------------------


@control
@heads.every_wrong_layer
def test_wrong_layer_is_not_the_convolution(rank: int, wrong: heads.Wrong, device: str) -> None:
    case = heads.generic_case(rank).to(device)
    layer = papers_layer(case.conv)
    assert agrees(layer, case)
    wrong(layer)
    assert not agrees(layer, case)


@control
@every_rank
@pytest.mark.parametrize("border", ["replicate", "reflect", "circular"])
def test_wrong_border_is_not_the_convolution(rank: int, border: str, device: str) -> None:
    case = heads.generic_case(rank).to(device)
    other = heads.generic_case(rank, padding_mode=border).to(device)
    assert agrees(papers_layer(other.conv), other)
    assert not agrees(papers_layer(other.conv), case)


@control
@every_rank
def test_attention_that_is_not_one_hot_is_not_the_convolution(rank: int, device: str) -> None:
    case = heads.generic_case(rank).to(device)
    assert not agrees(papers_layer(case.conv, sharpness=8.0), case)


@control
@every_rank
def test_query_minus_key_computes_the_flipped_kernel(rank: int) -> None:
    # Equation (9), on a symmetric window: the layer of Lemma 1 is the convolution with the kernel
    # reversed on every axis, and giving each head the matrix of the opposite offset repairs it.
    case = heads.generic_case(rank, kernel=(3, 3, 3))
    flipped = copy.deepcopy(case.conv)
    flipped.weight.data = case.conv.weight.data.flip(tuple(range(2, 2 + rank)))
    layer = papers_layer(case.conv)
    heads.query_minus_key(layer)
    assert not agrees(layer, case)
    assert agrees(layer, Case(flipped, case.x))
    edit_matrices(layer, lambda matrices: matrices.copy_(matrices.flip(0)))
    assert agrees(layer, case)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
