"""Bad input raises at the call, and the message tells the argument, the value and what is accepted.

The table of each section is one rule of the contract a line. What `certify` and `assert_equivalent`
refuse is in `test_certificate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from constructions import attention_from_conv, certify, convert
from constructions.encodings import Quadratic
from constructions.normalisers import Softmax
from tests.support.helpers import filled, integers, refused
from tests.support.strategies import Convolution

Phrases = tuple[str, str, str]
"""How the message begins, what it has of the given, and what it has of the accepted."""


# Inputs of the layer ---------------------------------------------------------------------------

BAD_INPUTS: dict[str, tuple[Convolution, Any, type[Exception], Phrases]] = {
    "no tensor": (nn.Conv1d(2, 1, 1), [[1.0]], TypeError, ("x", "list", "torch.Tensor")),
    "rank too low": (
        nn.Conv2d(2, 1, 1),
        torch.zeros(2, 4),
        ValueError,
        ("x", "(2, 4)", "(channels, *2 axes)"),
    ),
    "rank too high": (
        nn.Conv1d(2, 1, 1),
        torch.zeros(1, 1, 2, 4),
        ValueError,
        ("x", "(1, 1, 2, 4)", "(batch, channels, *1 axes)"),
    ),
    "channels": (nn.Conv1d(2, 1, 1), torch.zeros(1, 3, 4), ValueError, ("x", "3 channels", "2")),
    "channels, unbatched": (
        nn.Conv1d(2, 1, 1),
        torch.zeros(3, 4),
        ValueError,
        ("x", "3 channels", "2"),
    ),
    "wider dtype": (
        nn.Conv1d(2, 1, 1),
        torch.zeros(1, 2, 4, dtype=torch.float64),
        ValueError,
        ("x", "torch.float64", "torch.float32"),
    ),
    "integer dtype": (
        nn.Conv1d(2, 1, 1),
        torch.zeros(1, 2, 4, dtype=torch.int64),
        ValueError,
        ("x", "torch.int64", "torch.float32"),
    ),
    "device": (
        nn.Conv1d(2, 1, 1),
        torch.zeros(1, 2, 4, device="meta"),
        ValueError,
        ("x", "meta", "cpu"),
    ),
    "empty grid": (
        nn.Conv2d(2, 1, 1, padding=1),
        torch.zeros(1, 2, 3, 0),
        ValueError,
        ("x", "(3, 0)", "at least one pixel"),
    ),
    "reflect beyond the image": (
        nn.Conv1d(2, 1, 1, padding=4, padding_mode="reflect"),
        torch.zeros(1, 2, 4),
        ValueError,
        ("reflect padding of 4", "4 pixels", "at most 3"),
    ),
    "circular beyond the image": (
        nn.Conv1d(2, 1, 1, padding=5, padding_mode="circular"),
        torch.zeros(1, 2, 4),
        ValueError,
        ("circular padding of 5", "4 pixels", "at most 4"),
    ),
}


@pytest.mark.parametrize(("conv", "x", "kind", "phrases"), BAD_INPUTS.values(), ids=[*BAD_INPUTS])
def test_layer_refuses(conv: Convolution, x: Any, kind: type[Exception], phrases: Phrases) -> None:
    layer = attention_from_conv(conv)
    with refused(kind, *phrases):
        layer(x)


@pytest.mark.parametrize(
    "name",
    [
        "rank too low",
        "rank too high",
        "channels",
        "empty grid",
        "reflect beyond the image",
        "circular beyond the image",
    ],
)
def test_certify_refuses_an_input_that_the_layer_refuses(name: str) -> None:
    conv, x, kind, phrases = BAD_INPUTS[name]
    with refused(kind, *phrases):
        certify(attention_from_conv(conv), conv, x)


def test_kernel_larger_than_the_padded_image_is_refused() -> None:
    conv, x = nn.Conv2d(1, 1, (2, 4), padding=(0, 1), dilation=(1, 2)), torch.zeros(1, 1, 3, 4)
    layer = attention_from_conv(conv)
    for call in (
        lambda: layer(x),
        lambda: layer.attention_weights((3, 4)),
        lambda: certify(layer, conv, x),
    ):
        with pytest.raises(ValueError, match="kernel_size") as caught:
            call()
        for phrase in ("(2, 4)", "dilation (1, 2)", "spatial shape (3, 4)", "(3, 6)"):
            assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("size", "phrases"),
    [
        ([6, 9], ("output_size", "(6, 9)", "(7, 9) to (8, 10)")),
        ([9, 10], ("output_size", "(9, 10)", "(7, 9) to (8, 10)")),
        ([2, 4, 8, 11], ("output_size", "(8, 11)", "(7, 9) to (8, 10)")),
    ],
    ids=["too small", "too large", "too large, whole shape"],
)
def test_output_size_beyond_the_stride_is_refused(size: list[int], phrases: Phrases) -> None:
    layer = attention_from_conv(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1))
    with refused(ValueError, *phrases):
        layer(torch.zeros(2, 3, 4, 5), output_size=size)
    with refused(ValueError, *phrases):
        layer.attention_weights((4, 5), output_size=size)


@pytest.mark.parametrize("size", [[8], [1, 2, 4, 8, 10]], ids=["too short", "too long"])
def test_output_size_of_wrong_length_is_refused(size: list[int]) -> None:
    layer = attention_from_conv(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1))
    with pytest.raises(ValueError, match="output_size must have 2 entries") as caught:
        layer(torch.zeros(2, 3, 4, 5), output_size=size)
    assert str(tuple(size)) in str(caught.value)


@pytest.mark.parametrize("size", [9, [7, 9.5], "79"], ids=["a number", "a fraction", "a word"])
def test_output_size_of_anything_but_integers_is_refused(size: Any) -> None:
    layer = attention_from_conv(nn.ConvTranspose2d(3, 4, 3, stride=2))
    with refused(ValueError, "output_size", repr(size), "a sequence of 2 integers"):
        layer(torch.zeros(2, 3, 4, 5), output_size=size)


@given(data=st.data())
def test_output_size_is_taken_as_torch_takes_it(data: st.DataObject) -> None:
    conv = filled(nn.ConvTranspose2d(1, 2, 3, stride=(2, 3), padding=1, output_padding=1))
    x = integers(2, 1, 2, 3)
    size = data.draw(st.tuples(st.integers(2, 5), st.integers(6, 10)))
    whole = data.draw(st.booleans())
    asked = [2, 2, *size] if whole else [*size]
    layer = attention_from_conv(conv)
    try:
        expected = conv(x, output_size=asked)
    except ValueError:
        with refused(ValueError, "output_size", str(size), "to"):
            layer(x, output_size=asked)
    else:
        assert torch.equal(layer(x, output_size=asked), expected)


def test_output_size_is_for_transposed_convolutions() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 1))
    with pytest.raises(TypeError, match="output_size is accepted by transposed convolutions"):
        layer(torch.zeros(1, 3), output_size=[3])


@pytest.mark.parametrize(
    ("shape", "phrases"),
    [
        ((3,), ("spatial_shape", "(3,)", "2 sizes")),
        ((1, 3, 3), ("spatial_shape", "(1, 3, 3)", "2 sizes")),
    ],
    ids=["too short", "too long"],
)
def test_weights_refuse_a_shape_of_another_rank(shape: tuple[int, ...], phrases: Phrases) -> None:
    with refused(ValueError, *phrases):
        attention_from_conv(nn.Conv2d(1, 1, 1)).attention_weights(shape)


def test_weights_refuse_an_empty_grid() -> None:
    with pytest.raises(ValueError, match="shape must be at least 1") as caught:
        attention_from_conv(nn.Conv2d(1, 1, 1, padding=1)).attention_weights((3, 0))
    assert "(3, 0)" in str(caught.value)


# Options --------------------------------------------------------------------------------------


class Nothing:
    """An object with none of the methods asked for."""

    def __repr__(self) -> str:
        return "Nothing()"


BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], Phrases]] = {
    **{
        f"sharpness {value!r}": (
            {"sharpness": value},
            ValueError,
            ("sharpness", str(value), "positive, finite"),
        )
        for value in (0, 0.0, -1, -0.5, math.inf, -math.inf, math.nan, 10**400)
    },
    **{
        f"sharpness {value!r}": (
            {"sharpness": value},
            TypeError,
            ("sharpness", type(value).__name__, "number or None"),
        )
        for value in (True, "1", 1j, [1.0])
    },
    "sharpness as a tensor": (
        {"sharpness": torch.tensor(1.0)},
        TypeError,
        ("sharpness", "Tensor", "number or None"),
    ),
    "encoding name": ({"encoding": "cubic"}, ValueError, ("encoding", "'cubic'", "'quadratic'")),
    "normaliser name": (
        {"normaliser": "hardmax"},
        ValueError,
        ("normaliser", "'hardmax'", "'softmax'"),
    ),
    "no positions": (
        {"encoding": "none"},
        ValueError,
        ("encoding", "'none'", "ties_cannot_express_convolution"),
    ),
    "linear attention": (
        {"normaliser": "linear"},
        ValueError,
        ("normaliser", "'linear'", "low_rank_attention_cannot_express_convolution"),
    ),
    "mixing with a sharpness": (
        {"encoding": "scalar", "sharpness": 3.0},
        ValueError,
        ("sharpness", "3.0", "None"),
    ),
    "mixing without softmax": (
        {"encoding": "scalar", "normaliser": "top1"},
        ValueError,
        ("normaliser", "Top1()", "'softmax'"),
    ),
    "mixing with natural zeros": (
        {"encoding": "scalar", "boundary": "natural"},
        ValueError,
        ("boundary", "'natural'", "'padded'"),
    ),
    "boundary name": ({"boundary": "zeros"}, ValueError, ("boundary", "'zeros'", "'padded'")),
    "boundary sunk": ({"boundary": "sunk"}, ValueError, ("boundary", "'sunk'", "'natural'")),
    "evaluation name": ({"evaluation": "fast"}, ValueError, ("evaluation", "'fast'", "'dense'")),
    "evaluation of another": (
        {"evaluation": "fused", "encoding": "rotary"},
        ValueError,
        ("evaluation", "'fused'", "'auto'"),
    ),
    "encoding object": ({"encoding": Nothing()}, TypeError, ("encoding", "Nothing()", "Encoding")),
    "normaliser object": (
        {"normaliser": Nothing()},
        TypeError,
        ("normaliser", "Nothing()", "Normaliser"),
    ),
    "encoding class": ({"encoding": Quadratic}, TypeError, ("encoding", "Quadratic", "Encoding")),
    "normaliser class": ({"normaliser": Softmax}, TypeError, ("normaliser", "Softmax", "object")),
    "boundary object": ({"boundary": None}, TypeError, ("boundary", "None", "'padded'")),
    "evaluation object": ({"evaluation": 1}, TypeError, ("evaluation", "1", "'dense'")),
}


@pytest.mark.parametrize(("options", "kind", "phrases"), BAD_OPTIONS.values(), ids=[*BAD_OPTIONS])
def test_option_is_refused(
    options: dict[str, Any], kind: type[Exception], phrases: Phrases
) -> None:
    with refused(kind, *phrases):
        attention_from_conv(nn.Conv1d(1, 1, 3), **options)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="'alpha'"):
        attention_from_conv(nn.Conv1d(1, 1, 3), alpha=1.0)  # type: ignore[call-overload]


# Convolutions ---------------------------------------------------------------------------------


class OwnForward(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        """Twice the convolution."""
        return 2 * super().forward(input)


def replaced_forward() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    conv.forward = lambda input: input  # type: ignore[method-assign]
    return conv


def pruned() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    prune.l1_unstructured(conv, "weight", 1)  # type: ignore[no-untyped-call]
    return conv


def hooked(register: str) -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    getattr(conv, register)(lambda *_: None)
    return conv


HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)
BAD_CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], type[Exception], Phrases]] = {
    "forward of its own": (
        lambda: OwnForward(2, 2, 3),
        TypeError,
        ("conv", "OwnForward with a forward of its own", "nn.Conv2d"),
    ),
    "replaced forward": (replaced_forward, TypeError, ("conv", "forward of its own", "nn.Conv2d")),
    **{
        register: (partial(hooked, register), TypeError, ("conv", "hook", "none"))
        for register in HOOKS
    },
    "parametrised": (
        lambda: weight_norm(nn.Conv2d(2, 2, 3)),
        TypeError,
        ("conv", "parametrisation", "plain parameters"),
    ),
    "spectral norm": (
        lambda: spectral_norm(nn.Conv2d(2, 2, 3)),
        TypeError,
        ("conv", "parametrisation", "plain parameters"),
    ),
    "pruned": (pruned, TypeError, ("conv", "hook", "none")),
    "lazy": (lambda: nn.LazyConv2d(2, 3), TypeError, ("conv", "lazy", "seen an input")),
    "complex": (
        lambda: nn.Conv2d(2, 2, 3, dtype=torch.complex64),
        TypeError,
        ("conv", "torch.complex64", "real"),
    ),
    "eight bits": (
        lambda: nn.Conv2d(2, 2, 3).to(torch.float8_e4m3fn),
        ValueError,
        ("conv", "torch.float8_e4m3fn", "float16, bfloat16, float32, float64"),
    ),
}
EVERY_BAD_CONVOLUTION = pytest.mark.parametrize(
    ("make", "kind", "phrases"), BAD_CONVOLUTIONS.values(), ids=[*BAD_CONVOLUTIONS]
)


@EVERY_BAD_CONVOLUTION
def test_convolution_that_is_not_plain_is_refused(
    make: Callable[[], nn.Module], kind: type[Exception], phrases: Phrases
) -> None:
    conv: Any = make()
    with refused(kind, *phrases):
        attention_from_conv(conv)
    plain = nn.Conv2d(2, 2, 3)
    with refused(kind, *phrases):
        certify(attention_from_conv(plain), conv, torch.zeros(1, 2, 3, 3))


MADE = ("parametrised", "spectral norm", "pruned")
"""Weights that torch makes, and that `convert` follows."""


@pytest.mark.parametrize(
    ("make", "kind", "phrases"),
    [case for name, case in BAD_CONVOLUTIONS.items() if name not in MADE],
    ids=[name for name in BAD_CONVOLUTIONS if name not in MADE],
)
def test_convert_names_the_path_of_a_convolution_that_is_not_plain(
    make: Callable[[], nn.Module], kind: type[Exception], phrases: Phrases
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ModuleDict({"deep": nn.Sequential(make())}))
    with refused(kind, f"1.deep.0: {phrases[0]}", *phrases[1:]):
        convert(model)


@pytest.mark.parametrize("given_module", [nn.Linear(1, 1), nn.Conv1d, 3, None], ids=str)
def test_what_is_no_convolution_is_refused(given_module: Any) -> None:
    name = type(given_module).__name__
    with refused(TypeError, "conv", name, "nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d"):
        attention_from_conv(given_module)


def test_convert_refuses_what_is_no_module() -> None:
    not_a_module: Any = [nn.Conv1d(1, 1, 1)]
    with refused(TypeError, "model", "list", "torch.nn.Module"):
        convert(not_a_module)


def test_convert_names_the_path_for_a_bad_option() -> None:
    with refused(ValueError, "1: sharpness", "-1", "positive, finite"):
        convert(nn.Sequential(nn.ReLU(), nn.Conv1d(1, 1, 1)), sharpness=-1)


def test_convert_refuses_a_weight_shared_by_convolutions_of_two_kinds() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.ConvTranspose1d(2, 2, 3))
    model[1].weight = model[0].weight
    with refused(TypeError, "1: shares its weight", "with 0", "one kind"):
        convert(model)
