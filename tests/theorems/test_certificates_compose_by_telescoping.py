"""Replacing layers of a network by others changes its output by a sum over the calls of these layers: the term of a call is what the rest of the original network makes of that call's error, on what the layer receives in the converted network.

T23, `docs/theorems/certificates_compose_by_telescoping.md`. Networks with branches, shared modules
and modules called twice run in integers, in which nothing rounds; chains at any sharpness.
"""  # noqa: E501, the claim is one sentence

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import certify_layers, convert
from tests.support import formal
from tests.support.helpers import filled, integers
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from theory import certificates_compose_by_telescoping as theory

SLUG = "certificates_compose_by_telescoping"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

Layer = Callable[[int, Tensor], Tensor]
"""A call: the number of a layer, and what it is given."""

FORMS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "a chain": lambda layer, x: layer(1, layer(0, x).relu()),
    "a branch around a layer": lambda layer, x: (h := layer(0, x)) + layer(1, h.relu()),
    "a layer called twice": lambda layer, x: layer(1, layer(1, layer(0, x)).relu()),
    "branches that meet in a product": lambda layer, x: layer(0, x) * layer(1, x.abs()),
    "a layer in both branches": lambda layer, x: layer(1, layer(0, x)) - layer(1, x).relu(),
}
every_form = pytest.mark.parametrize("form", FORMS)


class Network(nn.Module):
    """Two convolutions of two channels, wired in one of the forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.layers = nn.ModuleList(
            filled(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode).double())
            for mode in ("zeros", "circular")
        )
        with torch.no_grad():
            for layer in self.layers:
                for parameter in layer.parameters():
                    parameter.copy_(parameter.clamp(-2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """The form, of the layers."""
        return FORMS[self.form](lambda number, image: Tensor(self.layers[number](image)), x)


def converted(network: Network, *wrong: int) -> Any:
    """Saturated attention, and wrong where it is asked for: integers all the same."""
    attention: Any = convert(network)
    for number in wrong:
        shifts = attention.layers[number].positional_shift
        shifts[[0, 4]] = shifts[[4, 0]]
    return attention


def hybrid(
    network: Network, attention: Any, x: Tensor, at: int, change: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The first calls by attention, call `at` changed, and the original's from there."""
    calls = iter(range(1, 100))

    def layer(number: int, image: Tensor) -> Tensor:
        call = next(calls)
        if call < at:
            y: Tensor = attention.layers[number](image)
        elif call == at:
            y = change(number, image)
        else:
            y = network.layers[number](image)
        return y

    return FORMS[network.form](layer, x)


def terms(network: Network, attention: Any, x: Tensor) -> Iterator[Tensor]:
    """Equation (3), by its right side: e_l is added to what the original layer returns."""

    def clean(number: int, image: Tensor) -> Tensor:
        y: Tensor = network.layers[number](image)
        return y

    def moved(number: int, image: Tensor) -> Tensor:
        error: Tensor = attention.layers[number](image) - clean(number, image)
        return clean(number, image) + error

    for call in range(1, 1 + calls_of(network, x)):
        with_error, without = (hybrid(network, attention, x, call, f) for f in (moved, clean))
        yield with_error - without


def calls_of(network: Network, x: Tensor) -> int:
    """L."""
    made: list[int] = []

    def layer(number: int, image: Tensor) -> Tensor:
        made.append(number)
        y: Tensor = network.layers[number](image)
        return y

    FORMS[network.form](layer, x)
    return len(made)


def image() -> Tensor:
    return integers(2, 2, 5, 4, dtype=torch.float64)


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@control
def test_proof_tells_a_program_with_one_call_more_replaced() -> None:
    program = (theory.Call(0, 0), theory.Other(0, 1), theory.Call(0, 2))
    outputs = {theory.run(program, replaced)[-1] for replaced in (0, 1, 2)}
    assert len(outputs) == 3


# The sum, exactly ---------------------------------------------------------------------------------


@exact
@every_form
@pytest.mark.parametrize("wrong", [(0,), (1,), (0, 1), ()], ids=str)
@torch.no_grad()
def test_difference_is_the_sum_over_calls_to_the_bit(form: str, wrong: tuple[int, ...]) -> None:
    network = Network(form)
    attention, x = converted(network, *wrong), image()
    difference = attention(x) - network(x)
    assert torch.equal(sum(terms(network, attention, x), torch.zeros(())), difference)
    certificate = certify_layers(attention, network, x)
    assert torch.equal(certificate.difference, difference.abs())
    assert (difference != 0).any() == bool(wrong)
    assert {name.partition(" ")[0] for name in certificate.failing} == {
        f"layers.{number}" for number in wrong
    }


@exact
@every_form
@torch.no_grad()
def test_each_certificate_is_of_what_its_layer_receives_by_the_oracle(form: str) -> None:
    network = Network(form)
    attention, x = converted(network, 0, 1), image()
    received: list[tuple[int, Tensor]] = []

    def layer(number: int, image: Tensor) -> Tensor:
        received.append((number, image))
        y: Tensor = attention.layers[number](image)
        return y

    FORMS[form](layer, x)
    certificates = list(certify_layers(attention, network, x).layers.values())
    assert len(certificates) == len(received)
    for (number, given_), certificate in zip(received, certificates, strict=True):
        conv = network.layers[number]
        error = exact_error(
            numbers(attention.layers[number](given_)), convolve_module(conv, given_)
        )
        assert np.array_equal(numbers(certificate.error), error)


# Bounds -------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Sequential, Tensor, dict[str, Any]]:
    """Chains of one to three convolutions and what may stand between, with an input."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    channels = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        conv = nn.Conv2d(
            inputs,
            outputs,
            draw(st.integers(1, 3)),
            stride=draw(st.integers(1, 2)),
            padding=2,
            padding_mode=draw(st.sampled_from(["zeros", "replicate", "circular"])),
            bias=draw(st.booleans()),
        )
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        parts.append(conv)
        between = [
            nn.ReLU(True),
            nn.Identity(),
            nn.MaxPool2d(2, 1, 1),
            nn.Dropout(),
            nn.AvgPool2d(2, 1),
        ]
        parts.append(draw(st.sampled_from(between)))
    chain = nn.Sequential(*parts).to(dtype)
    x = torch.randn(2, channels[0], 6, 5, dtype=dtype, generator=generator)
    sharpness = draw(st.sampled_from([None, 3.0, 20.0]))
    return chain, x, {"sharpness": sharpness}


@bounded
@given(drawn=chains())
def test_difference_of_chains_is_within_the_bound_of_their_layers(
    drawn: tuple[nn.Sequential, Tensor, dict[str, Any]],
) -> None:
    chain, x, options = drawn
    certificate = certify_layers(convert(chain, **options), chain, x)
    bound = certificate.end_to_end
    assert certificate.holds
    assert bound is not None
    record(ratio=(certificate.difference / bound).max().item(), device="cpu", dtype=x.dtype)
    assert (certificate.difference <= bound).all()


@bounded
def test_linear_layers_and_reordering_are_bounded_too() -> None:
    chain = nn.Sequential(
        nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU()), nn.Flatten(), nn.Linear(21, 5)
    )
    x = torch.rand(4, 2, 7)
    certificate = certify_layers(convert(chain, sharpness=12.0), chain, x)
    assert certificate.end_to_end is not None
    assert (certificate.difference <= certificate.end_to_end).all()
    # No less than |W| times what the layer before may err.
    weight = chain[2].get_parameter("weight").detach().abs().double()
    of_layer = certificate.layers["0.0"].bound.flatten(1) @ weight.T
    assert (certificate.end_to_end >= of_layer).all()


@bounded
def test_bound_is_attained_by_errors_of_one_sign() -> None:
    # One tap, weight 1, two pixels: each layer moves both by its leak, the second what is left.
    chain = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Conv1d(1, 1, 1, bias=False)).double()
    for conv in chain:
        nn.init.ones_(conv.get_parameter("weight"))
    x = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    certificate = certify_layers(convert(chain, sharpness=3.0), chain, x)
    leaks = sum(layer.leak for layer in certificate.layers.values())
    roundings = sum(layer.rounding for layer in certificate.layers.values())
    assert certificate.end_to_end is not None
    assert (certificate.end_to_end >= certificate.difference).all()
    assert (certificate.difference >= leaks - roundings).all()


# To first order -----------------------------------------------------------------------------------


@bounded
def test_estimate_approaches_the_difference_as_fast_as_the_errors_vanish() -> None:
    generator = torch.Generator().manual_seed(0)
    chain = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten()
    ).double()
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    x = torch.rand(2, 2, 6, 6, generator=generator, dtype=torch.float64)
    off = []
    for sharpness in (6.0, 10.0, 14.0):
        certificate = certify_layers(convert(chain, sharpness=sharpness), chain, x)
        estimate, difference = certificate.estimate, certificate.difference
        assert estimate is not None
        off.append(((estimate - difference).abs().max() / difference.max()).item())
    # A sink stands at half the sharpness: errors fall by e^2 = 7.4 from one to the next, and with
    # them the relative remainder, up to what is of second order in it.
    assert off[1] < off[0] / 4
    assert off[2] < off[1] / 4


@exact
@torch.no_grad()
def test_estimate_is_the_difference_where_all_is_affine() -> None:
    chain = nn.Sequential(*(filled(nn.Conv2d(2, 2, 3, padding=1)) for _ in range(2))).double()
    attention: Any = convert(chain)
    for number in (0, 1):
        shifts = attention[number].positional_shift
        shifts[[0, 4]] = shifts[[4, 0]]
    certificate = certify_layers(attention, chain, image())
    assert not certificate.holds
    assert certificate.estimate is not None
    assert (certificate.difference > 0).any()
    # e_2 is taken on what the layer receives: the two errors' product is in it.
    assert torch.equal(certificate.estimate, certificate.difference)


# What is no theorem -------------------------------------------------------------------------------


@control
@torch.no_grad()
def test_sum_without_the_branch_is_not_the_difference() -> None:
    network = Network("a branch around a layer")
    attention, x = converted(network, 0, 1), image()
    network.form = attention.form = "a chain"
    without = sum(terms(network, attention, x), torch.zeros(()))
    network.form = attention.form = "a branch around a layer"
    assert not torch.equal(without, attention(x) - network(x))


@control
@every_form
@torch.no_grad()
def test_rest_of_the_converted_network_counts_errors_twice(form: str) -> None:
    network = Network(form)
    attention, x = converted(network, 0, 1), image()
    count = calls_of(network, x)
    total = torch.zeros(())
    for at in range(1, 1 + count):
        calls = iter(range(1, 100))

        def layer(number: int, image: Tensor, at: int = at, calls: Iterator[int] = calls) -> Tensor:
            module = network.layers if next(calls) == at else attention.layers
            y: Tensor = module[number](image)
            return y

        # One call after another by the original's layer, in the converted network.
        total = total + attention(x) - FORMS[form](layer, x)
    assert not torch.equal(total, attention(x) - network(x))


@control
@torch.no_grad()
def test_errors_on_what_the_original_s_layers_receive_do_not_sum_to_the_difference() -> None:
    network = Network("a chain")
    attention, x = converted(network, 0, 1), image()
    hidden = network.layers[0](x).relu()
    error = attention.layers[1](hidden) - network.layers[1](hidden)
    first, _ = terms(network, attention, x)
    assert not torch.equal(first + error, attention(x) - network(x))


@control
def test_signed_weights_in_the_place_of_their_moduli_are_no_bound() -> None:
    weights, errors = np.array([[1, -1]]), np.array([3, 3])
    drawn = np.array([3, -3])
    assert (abs(drawn) <= errors).all()
    assert abs(weights @ drawn) <= abs(weights) @ errors
    assert abs(weights @ drawn) > weights @ errors


@control
@torch.no_grad()
def test_estimate_is_no_bound() -> None:
    # (8): what is -1/2 before ReLU becomes 1/2, where the derivative is 0.
    chain = nn.Sequential(nn.Conv1d(1, 1, 2, bias=False), nn.ReLU())
    chain[0].get_parameter("weight").copy_(torch.tensor([[[1.0, -0.5]]]))
    attention: Any = convert(chain)
    attention[0].positional_shift = attention[0].positional_shift.flip(0)
    certificate = certify_layers(attention, chain, torch.tensor([[[0.0, 1.0]]]))
    assert certificate.difference.tolist() == [[[1.0]]]
    assert certificate.estimate is not None
    assert certificate.estimate.tolist() == [[[0.0]]]


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
