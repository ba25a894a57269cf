"""A block of a stock Transformer, unmodified, with LayerNorm before or after its parts, computes a convolution and its ReLU within 2t times the moduli of its terms, and its constant makes t as small as one likes.

T21, `docs/theorems/a_transformer_block_is_convolution_and_relu.md`. The modules are torch's own; the
truth is the oracle's exact rational convolution, and its ReLU.
"""  # noqa: E501, the claim is one sentence

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import Stock, stock
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.oracle import Exact, convolve_module, exact_error, exactly, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import a_share
from theory import a_transformer_block_is_convolution_and_relu as theory

SLUG = "a_transformer_block_is_convolution_and_relu"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
PLACES = pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def relu(exact: Exact) -> Exact:
    """max(·, 0), exactly."""
    return Exact(np.maximum(exact.numerators, 0), exact.exponent)


def truth_of(layers: Sequence[nn.Module], x: Tensor) -> Exact:
    """The network over the reals; behind the first layer its numbers have to fit float64."""
    found = exactly(numbers(x))
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            found = relu(found)
        else:
            wide = torch.from_numpy(found.nearest())
            assert not exact_error(numbers(wide), found).any()
            found = convolve_module(layer, wide)
    return found


def ratio_of(module: Stock, x: Tensor, truth: Exact) -> float:
    """The largest error over its bound."""
    with torch.no_grad():
        error = exact_error(numbers(module(x)), truth)
    bound = module.bound(x)
    assert bound is not None
    assert bound.isfinite().all()
    return float((error / bound.numpy()).max(initial=0.0))


@st.composite
def seeds(draw: st.DrawFn) -> torch.Generator:
    """A generator of numbers, by a seed that Hypothesis draws."""
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


@st.composite
def blocks(
    draw: st.DrawFn, dtype: torch.dtype, kinds: Sequence[type[nn.Module]] = KINDS
) -> tuple[Any, Tensor]:
    """A convolution whose outputs stand on pixels, and an image; real numbers of many sizes."""
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3 if rank < 3 else 2)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    reach = [r * (k - 1) for r, k in zip(dilation, kernel, strict=True)]
    size = [max(1, n + draw(st.integers(0, 3))) for n in reach]
    options: dict[str, Any] = {"stride": draw(st.integers(1, 2)), "dilation": dilation}
    if kinds is KINDS:
        options["padding"] = [draw(st.integers(0, n // 2)) for n in reach]
        size = [
            max(n, far - 2 * p + 1)
            for n, far, p in zip(size, reach, options["padding"], strict=True)
        ]
    conv: Any = kinds[rank - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        groups=groups,
        bias=draw(st.booleans()),
        dtype=dtype,
        **options,
    )
    generator = draw(seeds())
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    scale = 2.0 ** draw(st.integers(-6, 2))
    x = torch.randn(2, conv.in_channels, *size, generator=generator, dtype=dtype) * scale
    return conv, x


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Blocks -------------------------------------------------------------------------------------------


@bounded
@DTYPES
@PLACES
@given(data=st.data())
@a_share
def test_encoder_layer_is_convolution_and_relu_within_its_bound(
    norm_first: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    conv, x = data.draw(blocks(dtype))
    has_relu = data.draw(st.booleans())
    module = stock.encoder_layer(conv, x.shape[2:], relu=has_relu, norm_first=norm_first)
    module.train(data.draw(st.booleans()))
    truth = convolve_module(conv, x)
    ratio = ratio_of(module, x, relu(truth) if has_relu else truth)
    assert type(module.module) is nn.TransformerEncoderLayer
    assert ratio <= 1
    record(ratio=ratio, dtype=dtype)


@bounded
@DTYPES
@PLACES
@given(data=st.data())
@a_share
def test_decoder_layer_takes_pixels_to_outputs_elsewhere_within_its_bound(
    norm_first: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    conv, x = data.draw(blocks(dtype, data.draw(st.sampled_from([KINDS, TRANSPOSED]))))
    module = stock.decoder_layer(conv, x.shape[2:], norm_first=norm_first)
    module.train(data.draw(st.booleans()))
    ratio = ratio_of(module, x, relu(convolve_module(conv, x)))
    assert type(module.module) is nn.TransformerDecoderLayer
    assert ratio <= 1
    record(ratio=ratio, dtype=dtype)


NETWORKS: dict[str, tuple[nn.Sequential, tuple[int, ...]]] = {
    "padded": (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)),
        (4, 5),
    ),
    "padded, then not": (
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 4), nn.ReLU()),
        (4, 5),
    ),
    "no border": (
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 2, (1, 3), bias=False)),
        (4, 5),
    ),
    "three layers, the last strided": (
        nn.Sequential(
            nn.Conv1d(1, 2, 3, padding="same"),
            nn.ReLU(),
            nn.Conv1d(2, 2, 3, padding=2, dilation=2, groups=2),
            nn.ReLU(),
            nn.Conv1d(2, 1, 3, stride=2, padding=1),
            nn.ReLU(),
        ),
        (9,),
    ),
}


@bounded
@DTYPES
@PLACES
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_encoder_is_a_small_cnn_within_its_bound(
    name: str, norm_first: bool, dtype: torch.dtype, training: bool
) -> None:
    network, shape = NETWORKS[name]
    network = filled(copy.deepcopy(network), 4).to(dtype)  # fractions, so that t is small
    x = integers(3, network[0].in_channels, *shape, dtype=dtype)  # type: ignore[arg-type]
    truth = truth_of(list(network), x)
    module = stock.encoder(network, shape, norm_first=norm_first).train(training)
    ratio = ratio_of(module, x, truth)
    assert type(module.module) is nn.TransformerEncoder
    assert truth.numerators.any()
    assert ratio <= 1
    record(ratio=ratio, dtype=dtype)


@bounded
@PLACES
def test_error_is_of_the_size_of_t_where_the_constant_is_small(norm_first: bool) -> None:
    # And falls with it, until rounding is what is left.
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)).double(), integers(2, 2, 4, 5).double()
    truth = relu(convolve_module(conv, x))
    errors = []
    for exponent in (12, 16, 20, 24):
        module = stock.encoder_layer(conv, (4, 5), norm_first=norm_first, magnitude=2.0**exponent)
        with torch.no_grad():
            errors.append(float(exact_error(numbers(module(x)), truth).max()))
        assert ratio_of(module, x, truth) <= 1
    # Each step divides t by 2^8; half of it is left for terms of the order t².
    assert all(later <= earlier / 2**7 for earlier, later in pairwise(errors))


@bounded
def test_token_of_no_pixel_is_what_it_was_behind_every_block() -> None:
    network, shape = NETWORKS["three layers, the last strided"]
    module = stock.encoder(filled(copy.deepcopy(network)).double(), shape, norm_first=True)
    (tokens,) = module.tokens(integers(1, 1, *shape).double())
    for layer in module.module.layers:
        tokens = layer(tokens)
    last = tokens[0, -1]
    assert last.count_nonzero() == 2
    assert last.abs().max() == 2.0**30


# Wrong constructions ------------------------------------------------------------------------------


def halved(module: Any) -> None:
    for parameter in module.module.parameters():
        parameter.div_(2)


def no_relu(module: Any) -> None:
    module.module.layers[0].linear2.weight.zero_()


def norms_as_initialised(module: Any) -> None:
    for norm in module.module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.weight.fill_(1)


def token_of_zeros(module: Any) -> None:
    """The token of no pixel without its constant: it looks everywhere, and is no zero any more."""
    tokens = module.tokens

    def changed(x: Tensor) -> tuple[object, ...]:
        (found,) = tokens(x)
        found[:, -1] = 0
        return (found,)

    module.tokens = changed


def a_head_lost(module: Any) -> None:
    attention = module.module.layers[1].self_attn
    attention.out_proj.weight[:, : attention.head_dim] = 0


WRONG: dict[str, Callable[[Any], None]] = {
    f.__name__: f for f in (halved, no_relu, norms_as_initialised, token_of_zeros, a_head_lost)
}


@control
@PLACES
@pytest.mark.parametrize("wrong", WRONG)
def test_other_module_is_rejected(wrong: str, norm_first: bool) -> None:
    network, shape = NETWORKS["padded"]
    network = filled(copy.deepcopy(network), 4)
    x = integers(3, 1, *shape)
    truth = truth_of(list(network), x)
    module = stock.encoder(network, shape, norm_first=norm_first)
    before = module(x).detach()
    assert ratio_of(module, x, truth) <= 1
    with torch.no_grad():
        WRONG[wrong](module)
    assert not torch.equal(before, module(x))
    assert ratio_of(module, x, truth) > 1


@control
def test_numbers_that_are_read_by_one_sign_keep_the_shift_of_the_mean() -> None:
    # Of a constant of 2^22 the mean's rounding is no small number.
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(2, 2, 7, 9)
    truth = relu(convolve_module(conv, x))
    module = stock.encoder_layer(conv, (7, 9), magnitude=2.0**22)
    with torch.no_grad():
        tokens = module.module(*module.tokens(x))[:, :-1]
        first = 2 * conv.in_channels
        one = tokens[..., first : first + 6 : 2].mT.reshape(2, 3, 7, 9)
        both = module(x)
    errors = [float(exact_error(numbers(y), truth).max()) for y in (one, both)]
    assert errors[0] > 64 * errors[1]


@control
def test_image_too_large_for_the_constant_has_no_bound() -> None:
    conv, x = filled(nn.Conv1d(1, 1, 3, padding=1)), integers(1, 1, 6)
    module = stock.encoder_layer(conv, 6)
    bounds = [module.bound(x), module.bound(x * 2.0**14)]
    assert [bound is not None and bool(bound.isfinite().all()) for bound in bounds] == [True, False]


@control
def test_larger_image_than_scores_allow_is_refused() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with refused(ValueError, "spatial_shape", "(150, 150)", "float64"):
        stock.encoder_layer(conv, (150, 150))
