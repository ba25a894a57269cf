"""Diagnoses: where a wrong layer fails, what it computes instead, and whether a leak would do.

Held on each wrong layer that tests of this project own, and on modules of others.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv
from tests.library.certificate.test_certificate import WRONG, Constant, WindowAttention
from tests.support import heads
from tests.support.helpers import filled, integers
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.theorems import test_layer_error_is_certified as certified

NAMED = re.compile(r"^It agrees, within that construction's own bound, with: (.*)\.$", re.MULTILINE)
NONE = "It agrees with none of the wrong constructions that are known by name."
SEVERAL = "This input does not tell which it is"


def message(layer: nn.Module, conv: Any, x: Tensor) -> str:
    """What is said of a wrong layer."""
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(layer, conv, x)
    return str(caught.value)


def named(layer: nn.Module, conv: Any, x: Tensor) -> str:
    """The one wrong construction that is named."""
    (name,) = NAMED.findall(message(layer, conv, x))
    return str(name)


def where(layer: nn.Module, conv: Any, x: Tensor) -> str:
    """What is said of the outputs that fail."""
    (line,) = re.findall(r"^Where: (.*)\.$", message(layer, conv, x), re.MULTILINE)
    return str(line)


def plain() -> tuple[nn.Conv2d, Tensor]:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    return conv, integers(2, 2, 4, 5)


# What it computes: the wrong layers that tests own ------------------------------------------------

ALL_AXES = "the kernel flipped on all axes"
Q_MINUS_K = "q - k in place of k - q"
MODULES = {
    "kernel reversed on one axis": "the kernel flipped on axis 0",
    "axes swapped": "the kernel's axes 0 and 1 swapped",
    "a head zeroed": "head 4 lost",
    "a head missing": "head 8 lost",
    "weak sharpness": "weak sharpness, as of a gap of 5 in score",
    "another border": "the border 'circular'",
}
UNNAMED = {"one weight slightly off", "not a number"}
SHAPELESS = {"shape of another padding"}


@pytest.mark.parametrize("wrong", MODULES)
def test_wrong_module_is_named(wrong: str) -> None:
    conv, x = plain()
    assert named(WRONG[wrong](conv), conv, x) == MODULES[wrong]


@pytest.mark.parametrize("wrong", sorted(UNNAMED))
def test_module_that_is_none_of_the_wrong_ones_is_given_no_name(wrong: str) -> None:
    conv, x = plain()
    assert NONE in message(WRONG[wrong](conv), conv, x)


def test_every_wrong_module_has_its_diagnosis() -> None:
    assert WRONG.keys() == MODULES.keys() | UNNAMED | SHAPELESS


LAYERS = {
    "reversed_kernel": f"{ALL_AXES}, which is here also {Q_MINUS_K}",
    "swapped_axes": "the kernel's axes 0 and 1 swapped",
    "missing_head": "head 0 lost",
    "two_heads_swapped": "heads 0 and 1 swapped",
    "matrices_shared_between_heads": "the matrix of head 0 for all heads",
    "weak_sharpness": "weak sharpness, as of a gap of {} in score",
    "forgotten_bias": "the bias missing",
}


@pytest.mark.parametrize(("sharpness", "weak"), [(None, "6.5"), (16.0, "0.5")], ids=str)
@pytest.mark.parametrize("spoil", certified.WRONG_LAYERS, ids=lambda spoil: spoil.__name__)
def test_wrong_layer_is_named(spoil: Any, sharpness: float | None, weak: str) -> None:
    case = certified.plain_case(torch.float32)
    layer = attention_from_conv(case.conv, sharpness=sharpness)
    assert weak == f"{layer.sharpness / 32:.3g}"
    spoil(layer)
    assert named(layer, case.conv, case.x) == LAYERS[spoil.__name__].format(weak)


@pytest.mark.parametrize("wrong", ["replicate", "reflect", "circular"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_wrong_border_is_named(dtype: torch.dtype, wrong: str) -> None:
    case = certified.plain_case(dtype)
    other = certified.plain_case(dtype, padding_mode=wrong)
    assert named(attention_from_conv(other.conv), case.conv, case.x) == f"the border {wrong!r}"


@pytest.mark.parametrize("wrong", ["replicate", "reflect", "circular"])
def test_wrong_border_of_a_module_of_others_is_named(wrong: Any) -> None:
    conv, x = plain()
    other = nn.Conv2d(2, 3, 3, padding=1, padding_mode=wrong)
    other.load_state_dict(conv.state_dict())
    assert named(other, conv, x) == f"the border {wrong!r}"


EDITED = {
    heads.reversed_kernel: ALL_AXES,
    heads.query_minus_key: Q_MINUS_K,
    heads.swapped_axes: "the kernel's axes 0 and {} swapped",
    heads.repeated_shift: "head 1 where head 0 looks",
    heads.missing_head: "head 0 lost",
    heads.shared_matrices: "the matrix of head 0 for all heads",
}


@heads.every_wrong_layer
def test_edited_layer_is_named_in_any_dimension(rank: int, wrong: Any) -> None:
    case = heads.generic_case(rank, torch.float64)
    layer = attention_from_conv(case.conv)
    wrong(layer)
    name = named(layer, case.conv, case.x).partition(", which is here also ")[0]
    assert name == EDITED[wrong].format(rank - 1)  # the axes in reverse: of three the outer ones


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_half_the_sharpness_is_named(rank: int) -> None:
    case = heads.generic_case(rank, torch.float32)
    layer = attention_from_conv(case.conv)
    heads.half_the_sharpness(layer)
    half = f"a gap of {layer.sharpness / 2:.3g} in score"
    assert named(layer, case.conv, case.x) == f"weak sharpness, as of {half}"


def test_head_doubled_is_named() -> None:
    conv, x = plain()
    wrong = copy.deepcopy(conv)
    with torch.no_grad():
        wrong.weight[:, :, 1, 2] *= 2
    assert named(wrong, conv, x) == "head 5 doubled"


def test_offsets_of_a_strided_dilated_and_grouped_kernel_are_negated() -> None:
    conv = filled(nn.Conv1d(2, 2, 2, stride=2, padding=2, dilation=3, groups=2, bias=False))
    x = integers(1, 2, 9)
    layer = attention_from_conv(conv)
    heads.query_minus_key(layer)
    assert named(layer, conv, x) == Q_MINUS_K


def test_transposed_convolution_has_its_kernel_flipped() -> None:
    conv = filled(nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1))
    wrong = copy.deepcopy(conv)
    with torch.no_grad():
        wrong.weight.copy_(conv.weight.flip(2))
    # Its window is centred: there the two are one.
    assert named(wrong, conv, integers(1, 2, 5)).startswith(ALL_AXES)


# A name is true -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [name for name in MODULES if name != "weak sharpness"])
def test_named_construction_is_what_the_layer_computes_on_another_input(wrong: str) -> None:
    """By the oracle, which knows nothing of names: the same wrong convolution, to the bit."""
    conv, x = plain()
    layer, name = WRONG[wrong](conv), named(WRONG[wrong](conv), conv, x)
    other = copy.deepcopy(conv)
    with torch.no_grad():
        if name == "the kernel flipped on axis 0":
            other.weight.copy_(conv.weight.flip(2))
        elif name.endswith("swapped"):
            other.weight.copy_(conv.weight.transpose(2, 3))
        elif name.startswith("head"):
            other.weight.flatten(2)[..., int(name.split()[1])] = 0
        else:
            other.padding_mode = "circular"
    another = integers(1, 2, 6, 3)
    with torch.no_grad():
        y = numbers(layer(another))
    assert (exact_error(y, convolve_module(other, another)) == 0).all()
    assert (exact_error(y, convolve_module(conv, another)) != 0).any()


@pytest.mark.parametrize("power", [-8, 4])
@pytest.mark.parametrize("index", [0, 67, 119])
def test_one_output_off_is_no_wrong_construction(index: int, power: int) -> None:
    conv, x = plain()
    y = conv(x).detach()
    y.view(-1)[index] += 2.0**power
    assert NONE in message(Constant(y), conv, x)


@pytest.mark.parametrize("wrong", MODULES)
def test_wrong_construction_with_one_output_off_has_no_name(wrong: str) -> None:
    conv, x = plain()
    with torch.no_grad():
        y = WRONG[wrong](conv)(x)
    y[1, 2, 1, 1] += 0.25
    assert NONE in message(Constant(y), conv, x)


def test_wrong_constructions_that_an_input_does_not_tell_apart_are_told_together() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    wrong = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")
    wrong.load_state_dict(conv.state_dict())
    # Of a constant image all borders but zeros are alike, and more than borders.
    told = message(wrong, conv, torch.ones(1, 2, 5, 5))
    (name,) = NAMED.findall(told) or re.findall(f"^{SEVERAL}.*$", told, re.MULTILINE)
    for mode in ("replicate", "reflect", "circular"):
        assert f"the border {mode!r}" in name


def test_different_wrong_constructions_within_their_bounds_are_not_decided_between() -> None:
    # A sharpness of 1 leaks so much that its bound admits a head lost and a head doubled.
    conv = nn.Conv1d(1, 1, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[64.0, 1.0]]]))
    layer = attention_from_conv(conv, sharpness=1.0)
    layer.positional_shift = layer.positional_shift + 40
    assert not NAMED.findall(message(layer, conv, integers(1, 1, 9)))


# Where --------------------------------------------------------------------------------------------

Off = Callable[[Tensor], object]
PLACES: dict[str, tuple[Any, tuple[int, ...], Off, str]] = {
    "all": (
        nn.Conv2d(2, 3, 3, padding=1),
        (2, 2, 4, 5),
        lambda y: y.add_(1),
        "all 120 outputs fail",
    ),
    "border": (
        nn.Conv2d(2, 3, 3, padding=1),
        (2, 2, 4, 5),
        lambda y: y[..., 0].add_(1),
        "24 of 120 outputs fail, all of them at the border, where the kernel reaches beyond the "
        "image (84 outputs)",
    ),
    "inside": (
        nn.Conv2d(2, 3, 3, padding=1),
        (2, 2, 4, 5),
        lambda y: y[..., 1:3, 1:4].add_(1),
        "36 of 120 outputs fail, none of them at the border",
    ),
    "image": (
        nn.Conv2d(2, 3, 3),
        (3, 2, 4, 5),
        lambda y: y[1].add_(1),
        "18 of 54 outputs fail, all of them in image 1 (of 0 to 2)",
    ),
    "group": (
        nn.Conv1d(4, 6, 1, groups=2),
        (1, 4, 5),
        lambda y: y[:, 3:].add_(1),
        "15 of 30 outputs fail, all of them in group 1 (of 0 to 1)",
    ),
    "channel": (
        nn.Conv1d(4, 6, 1),
        (1, 4, 5),
        lambda y: y[:, 3].add_(1),
        "5 of 30 outputs fail, all of them in output channel 3 (of 0 to 5)",
    ),
    "phase": (
        nn.ConvTranspose1d(2, 3, 1, stride=2),
        (1, 2, 5),
        lambda y: y[..., 1::2].add_(1),
        "12 of 27 outputs fail, all of them at phase (1) of the stride (2)",
    ),
    "phase of one axis": (
        nn.ConvTranspose2d(1, 1, (1, 1), stride=(2, 3)),
        (1, 1, 3, 3),
        lambda y: y[..., ::2, :].add_(1),
        "21 of 35 outputs fail, all of them at phase (0, *) of the stride (2, 3)",
    ),
    "scattered": (
        nn.Conv1d(1, 2, 1),
        (2, 1, 5),
        lambda y: y.view(-1)[::19].add_(1),
        "2 of 20 outputs fail",
    ),
    "unbatched": (
        nn.Conv1d(1, 2, 1),
        (1, 5),
        lambda y: y[1].add_(1),
        "5 of 10 outputs fail, all of them in output channel 1 (of 0 to 1)",
    ),
    "pooling": (
        nn.AvgPool1d(2),
        (2, 3, 4),
        lambda y: y[:, 2].add_(1),
        "4 of 12 outputs fail, all of them in output channel 2 (of 0 to 2)",
    ),
}


@pytest.mark.parametrize(("conv", "shape", "off", "told"), PLACES.values(), ids=[*PLACES])
def test_message_tells_what_the_failing_outputs_have_in_common(
    conv: Any, shape: tuple[int, ...], off: Off, told: str
) -> None:
    conv, x = filled(conv), integers(*shape)
    with torch.no_grad():
        y = conv(x).clone()
        off(y)
    assert where(Constant(y), conv, x) == told


# Whether a leak would do --------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [2.0, 5.0, 12.0])
def test_leak_that_is_named_forgives_and_little_less_does_not(sharpness: float) -> None:
    conv, x = plain()
    layer = WindowAttention(conv, sharpness)
    told = message(layer, conv, x)
    (found,) = re.findall(r"^leak=(\S+) would forgive it\.$", told, re.MULTILINE)
    assert_equivalent(layer, conv, x, leak=float(found))
    with pytest.raises(AssertionError):
        assert_equivalent(layer, conv, x, leak=0.98 * float(found))


def test_what_no_leak_forgives_is_told_so() -> None:
    conv, x = plain()
    far = Constant(conv(x).detach() + 1000)
    assert "No leak= forgives it" in message(far, conv, x)
    with pytest.raises(AssertionError):
        assert_equivalent(far, conv, x, leak=1.0)


def test_layer_of_ours_is_granted_no_leak() -> None:
    conv, x = plain()
    wrong = WRONG["a head zeroed"](conv)
    assert "leak= does not forgive it" in message(wrong, conv, x)
    with pytest.raises(AssertionError):
        assert_equivalent(wrong, conv, x, leak=1.0)


# The message is short -----------------------------------------------------------------------------


def test_message_of_a_large_layer_is_short() -> None:
    conv, x = filled(nn.Conv2d(16, 32, 3, padding=1)), integers(2, 16, 8, 8)
    many = nn.Sequential(conv, *(nn.Identity() for _ in range(200)))
    with torch.no_grad():
        wrong = copy.deepcopy(many)
        assert isinstance(wrong[0], nn.Conv2d)
        wrong[0].weight.copy_(conv.weight.flip(2, 3))
    told = message(wrong, conv, x)
    assert f"{ALL_AXES}, which is here also {Q_MINUS_K}" in told
    assert len(told) < 2000
