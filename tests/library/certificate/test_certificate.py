"""Certificates, and equivalence of any module: what they return, refuse and say.

That the bound holds and is sharp is the subject of `test_layer_error_is_certified.py`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify
from constructions.certificate import Certificate, leak
from constructions.formats import FORMATS
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import ROOT
from tests.support.matrix_units import HAS_NNPACK, without_onednn
from tests.support.strategies import Case, Convolution, integer_cases

Phrases = tuple[str, str, str]
"""How the message begins, what it has of the given, and what it has of the accepted."""

DTYPES = pytest.mark.parametrize("dtype", FORMATS, ids=str)


@dataclass(frozen=True)
class Pair:
    """A convolution, a layer held against it, and an input of both."""

    conv: Any
    layer: Any
    x: Any


def pair(sharpness: float | None = None) -> Pair:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    return Pair(conv, attention_from_conv(conv, sharpness=sharpness), integers(2, 2, 4, 5))


# Certificates -------------------------------------------------------------------------------------


def test_output_size_takes_no_sink_away() -> None:
    # The layer has one for its output padding, whatever size it is called with.
    conv = nn.ConvTranspose1d(1, 1, 1, dilation=2, output_padding=1, bias=False)
    nn.init.constant_(conv.weight, 0.5)
    layer = attention_from_conv(conv, sharpness=0.5)
    assert layer.has_sink
    certificate = certify(layer, conv, torch.full((1, 1, 1), 0.5), output_size=[1])
    assert certificate.holds
    assert float(certificate.leak) > 0


@pytest.mark.parametrize("sharpness", [None, 2.0], ids=str)
def test_certificate_has_the_output_s_shape_in_float64(sharpness: float | None) -> None:
    case = pair(sharpness)
    certificate = certify(case.layer, case.conv, case.x)
    for name in ("error", "bound", "leak", "rounding", "conv_error"):
        tensor = getattr(certificate, name)
        assert (name, tensor.shape, tensor.dtype) == (name, (2, 3, 4, 5), torch.float64)
        assert bool((tensor >= 0).all())
    assert torch.equal(certificate.bound, certificate.leak + certificate.rounding)
    assert certificate.holds is True
    assert isinstance(certificate.ratio, float)
    assert certificate.ratio == float((certificate.error / certificate.bound).nan_to_num().max())


@given(data=st.data())
def test_certificate_has_the_shape_of_every_output(data: st.DataObject) -> None:
    case = data.draw(integer_cases(data.draw(st.sampled_from(FORMATS))))
    layer = attention_from_conv(case.conv)
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    assert certificate.error.shape == certificate.bound.shape == case.run(case.conv).shape
    assert certificate.holds


@pytest.mark.parametrize(
    ("error", "bound", "ratio", "holds"),
    [
        ([0.0, 0.0], [0.0, 1.0], 0.0, True),
        ([0.0, 1e-300], [1.0, 0.0], math.inf, False),
        ([1.0, 3.0], [2.0, 4.0], 0.75, True),
        ([1.0, 3.0], [1.0, 3.0], 1.0, True),
        ([1.0, 3.0], [1.0, 2.0], 1.5, False),
        ([math.inf, 0.0], [1.0, 1.0], math.inf, False),
        ([], [], 0.0, True),
    ],
    ids=["0/0", "positive/0", "within", "equal", "beyond", "no number", "empty batch"],
)
def test_ratio_is_the_largest_error_over_bound(
    error: list[float], bound: list[float], ratio: float, holds: bool
) -> None:
    errors, bounds = (torch.tensor(values, dtype=torch.float64) for values in (error, bound))
    certificate = Certificate(errors, bounds, torch.zeros_like(bounds), torch.zeros_like(bounds))
    assert certificate.ratio == ratio
    assert certificate.holds is holds


def test_certificate_of_an_empty_batch_holds() -> None:
    case = pair()
    certificate = certify(case.layer, case.conv, case.x[:0])
    assert certificate.error.shape == certificate.bound.shape == (0, 3, 4, 5)
    assert (certificate.holds, certificate.ratio) == (True, 0.0)
    assert_equivalent(case.layer, case.conv, case.x[:0])
    assert_equivalent(case.conv, case.conv, case.x[:0])


def wider(module: Any) -> Any:
    return copy.deepcopy(module).double()


def set_once(conv: Convolution, name: str, value: float) -> Convolution:
    wrong = copy.deepcopy(conv)
    with torch.no_grad():
        getattr(wrong, name).view(-1)[0] = value
    return wrong


def live(layer: Any) -> Any:
    trained = copy.deepcopy(layer).unfreeze("content")
    with torch.no_grad():
        trained.query.fill_(1.0)
    return trained


T9 = "theorem T9, docs/theorems/dense_attention_spreads_non_finite_pixels.md"
BAD_PAIRS: dict[str, tuple[Callable[..., Pair], type[Exception], Phrases]] = {
    "x wider": (
        lambda p: Pair(p.conv, p.layer, p.x.double()),
        ValueError,
        ("conv.weight is torch.float32", "x is torch.float64", "one dtype"),
    ),
    "conv wider": (
        lambda p: Pair(wider(p.conv), p.layer, p.x),
        ValueError,
        ("conv.weight is torch.float64", "x is torch.float32", "one dtype"),
    ),
    "layer wider": (
        lambda p: Pair(p.conv, wider(p.layer), p.x),
        ValueError,
        ("layer has dtype torch.float64", "x has torch.float32", "the same"),
    ),
    "x of integers": (
        lambda p: Pair(p.conv, p.layer, p.x.long()),
        ValueError,
        ("x has dtype", "torch.int64", "float16, bfloat16, float32, float64"),
    ),
    "x elsewhere": (
        lambda p: Pair(p.conv, p.layer, p.x.to("meta")),
        ValueError,
        ("", "meta", "one device"),
    ),
    **{
        f"x has {value}": (
            lambda p, value=value: Pair(p.conv, p.layer, p.x.index_fill(3, torch.tensor(1), value)),
            ValueError,
            ("x", "infinite or NaN", T9),
        )
        for value in (math.inf, -math.inf, math.nan)
    },
    "weight not finite": (
        lambda p: Pair(set_once(p.conv, "weight", math.nan), p.layer, p.x),
        ValueError,
        ("conv.weight", "infinite or NaN", "finite"),
    ),
    "bias not finite": (
        lambda p: Pair(set_once(p.conv, "bias", math.inf), p.layer, p.x),
        ValueError,
        ("conv.bias", "infinite or NaN", "finite"),
    ),
    "no tensor": (
        lambda p: Pair(p.conv, p.layer, [1.0]),
        TypeError,
        ("x", "list", "torch.Tensor"),
    ),
    "no convolution": (
        lambda p: Pair(nn.Linear(2, 2), p.layer, p.x),
        TypeError,
        ("conv", "Linear", "nn.Conv1d"),
    ),
    "live content": (
        lambda p: Pair(p.conv, live(p.layer), p.x),
        ValueError,
        ("layer", "live content", "positions alone"),
    ),
}


@pytest.mark.parametrize(("spoil", "kind", "phrases"), BAD_PAIRS.values(), ids=[*BAD_PAIRS])
@pytest.mark.parametrize("judge", [certify, assert_equivalent], ids=["certify", "equivalent"])
def test_judge_refuses(
    judge: Callable[[Any, Any, Any], object],
    spoil: Callable[..., Pair],
    kind: type[Exception],
    phrases: Phrases,
) -> None:
    wrong = spoil(pair())
    with refused(kind, *phrases):
        judge(wrong.layer, wrong.conv, wrong.x)


def test_certify_refuses_a_layer_of_another_kind() -> None:
    case = pair()
    with refused(
        TypeError, "layer", "Conv2d", "MultiHeadSelfAttention; assert_equivalent takes any"
    ):
        certify(case.conv, case.conv, case.x)


def test_assert_equivalent_refuses_what_is_no_module() -> None:
    case = pair()
    not_a_module: Any = F.relu
    with refused(TypeError, "layer", "function", "torch.nn.Module"):
        assert_equivalent(not_a_module, case.conv, case.x)


@pytest.mark.parametrize("given_leak", [-0.1, 1.1, math.nan, math.inf], ids=str)
def test_assert_equivalent_refuses_a_leak_that_is_no_share(given_leak: float) -> None:
    case = pair()
    with refused(ValueError, "leak", str(given_leak), "0 to 1"):
        assert_equivalent(case.layer, case.conv, case.x, leak=given_leak)


# Equivalence of any module ------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """A user's own attention: nine heads over the nine keys of each zero-padded window."""

    def __init__(self, conv: nn.Conv2d, sharpness: float, heads: int = 9) -> None:
        super().__init__()
        grid = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
        distances = (grid[:, None] - grid).square().sum(-1)
        self.weights = torch.softmax(-sharpness * distances.to(conv.weight), -1)[:heads]
        self.matrices = conv.weight.detach().flatten(2)[..., :heads]
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Attend, mix, add."""
        keys = F.unfold(x, 3, padding=1).reshape(len(x), x.shape[1], 9, -1)
        seen = torch.einsum("hk,nckq->nchq", self.weights, keys)
        y = torch.einsum("och,nchq->noq", self.matrices, seen).reshape(len(x), -1, *x.shape[2:])
        return y if self.bias is None else y + self.bias[:, None, None]


class Constant(nn.Module):
    """A module that returns one tensor, whatever it is called with."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        """The tensor."""
        return self.y


@pytest.mark.parametrize("sharpness", [None, 2.0], ids=str)
def test_layer_of_ours_is_equivalent_within_its_own_certificate(sharpness: float | None) -> None:
    case = pair(sharpness)
    assert_equivalent(case.layer, case.conv, case.x)


@DTYPES
def test_another_convolution_with_the_same_weights_is_equivalent(dtype: torch.dtype) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, dtype=dtype), 7)
    other = nn.Conv2d(2, 3, 3, padding="same", dtype=dtype)
    other.load_state_dict(conv.state_dict())
    assert_equivalent(other, conv, integers(2, 2, 4, 5, dtype=dtype))


@DTYPES
def test_own_saturated_attention_is_equivalent(dtype: torch.dtype) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, dtype=dtype), 7)
    assert_equivalent(WindowAttention(conv, 1000.0), conv, integers(2, 2, 4, 5, dtype=dtype))


def test_own_soft_attention_is_equivalent_once_its_leak_is_granted() -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(2, 2, 4, 5)
    soft = WindowAttention(conv, 2.0)  # on a window its leak is below that of the plane
    assert_equivalent(soft, conv, x, leak=leak(2.0, 2))
    with pytest.raises(AssertionError, match="layer_error_is_certified"):
        assert_equivalent(soft, conv, x)


def flipped(conv: nn.Conv2d) -> nn.Module:
    wrong = copy.deepcopy(conv)
    with torch.no_grad():
        wrong.weight.copy_(conv.weight.flip(2))
    return wrong


def swapped(conv: nn.Conv2d) -> nn.Module:
    wrong = copy.deepcopy(conv)
    with torch.no_grad():
        wrong.weight.copy_(conv.weight.transpose(2, 3))
    return wrong


def zero_head(conv: nn.Conv2d) -> nn.Module:
    wrong = attention_from_conv(conv)
    with torch.no_grad():
        wrong.weight.flatten(2)[..., 4].zero_()
    return wrong


def other_border(conv: nn.Conv2d) -> nn.Module:
    wrong = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    wrong.load_state_dict(conv.state_dict())
    return attention_from_conv(wrong)


def slightly_off(conv: nn.Conv2d) -> nn.Module:
    """One weight by 2^-6, which no rounding of sums of small integers explains."""
    return set_once(conv, "weight", conv.weight.detach().flatten()[0].item() + 2**-6)


WRONG: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "kernel reversed on one axis": flipped,
    "axes swapped": swapped,
    "a head zeroed": zero_head,
    "a head missing": lambda conv: WindowAttention(conv, 1000.0, heads=8),
    "weak sharpness": lambda conv: WindowAttention(conv, 5.0),
    "another border": other_border,
    "one weight slightly off": slightly_off,
    "not a number": lambda conv: Constant(torch.full((2, 3, 4, 5), math.nan)),
    "shape of another padding": lambda conv: nn.Conv2d(2, 3, 3),
}
EVERY_WRONG = pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))


def disagreement(layer: nn.Module, conv: Convolution, x: Tensor) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(layer, conv, x)
    return str(caught.value)


@EVERY_WRONG
def test_wrong_module_is_told_by_theorem_page_error_and_bound(
    wrong: Callable[[nn.Conv2d], nn.Module],
) -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(2, 2, 4, 5)
    assert isinstance(conv, nn.Conv2d)
    message = disagreement(wrong(conv), conv, x)
    assert "layer_error_is_certified" in message
    page = re.search(r"docs/theorems/\w+\.md", message)
    assert page is not None
    assert (ROOT / page[0]).is_file()
    for word in ("error", "bound", "To reproduce"):
        assert word in message


def test_message_tells_the_worst_output() -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(2, 2, 4, 5)
    y = conv(x).detach()
    y[1, 2, 3, 0] += 0.5
    y[0, 0, 0, 0] += 0.25
    message = disagreement(Constant(y), conv, x)
    assert "(1, 2, 3, 0)" in message
    assert "error is 0.5," in message


def reproduction(message: str) -> str:
    """The code after the line that announces it."""
    return re.split(r"^To reproduce.*\n", message, flags=re.MULTILINE)[1]


@EVERY_WRONG
def test_reproduction_runs_when_pasted_and_fails_the_same_way(
    wrong: Callable[[nn.Conv2d], nn.Module],
) -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(2, 2, 4, 5)
    assert isinstance(conv, nn.Conv2d)
    layer = wrong(conv)
    message = disagreement(layer, conv, x)
    with pytest.raises(AssertionError) as again:
        exec(reproduction(message), {"layer": layer})  # pasted where `layer` is the user's own
    assert str(again.value).splitlines()[0] == message.splitlines()[0]


@given(
    case=integer_cases(torch.float32).filter(
        # assert_equivalent takes no output_size, and nothing disagrees on an empty batch.
        lambda case: case.output_size is None and case.x.numel() > 0
    )
)
def test_reproduction_makes_every_convolution_and_input_again(case: Case) -> None:
    far_off = Constant(case.conv(case.x).detach() + 2**30)  # the sums are at most 2^24
    code = reproduction(disagreement(far_off, case.conv, case.x))
    names: dict[str, Any] = {"layer": far_off}
    with pytest.raises(AssertionError):
        exec(code, names)
    assert repr(names["conv"]) == repr(case.conv)
    for name, tensor in case.conv.state_dict().items():
        assert torch.equal(names["conv"].state_dict()[name], tensor)
    assert torch.equal(names["x"], case.x)
    assert names["x"].dtype == case.x.dtype


def test_reproduction_of_a_layer_of_ordinary_size_runs_too() -> None:
    conv, x = filled(nn.Conv2d(16, 32, 3, padding=1)), integers(1, 16, 8, 8)
    layer = Constant(conv(x).detach() + 1)
    message = disagreement(layer, conv, x)
    with pytest.raises(AssertionError) as again:
        exec(reproduction(message), {"layer": layer})
    assert str(again.value).splitlines()[0] == message.splitlines()[0]


def test_convolution_that_may_crash_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch 2.13, float16 on a CPU: one tap, strided, dilated and padded ends the process at times.
    conv = filled(nn.Conv1d(2, 2, 1, stride=2, dilation=2, padding=3)).half()
    run, formats = torch.nn.functional.conv1d, set()

    def spied(image: Tensor, *rest: Any, **named: Any) -> Tensor:
        formats.add(image.dtype)
        return run(image, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "conv1d", spied)
    certificate = certify(attention_from_conv(conv), conv, integers(1, 2, 5).half())
    assert certificate.holds
    assert certificate.conv_error.isnan().all()
    assert torch.float16 not in formats


# What torch's flags change ------------------------------------------------------------------------


def transformed() -> Pair:
    """Of integers, of which torch's own convolution is not exact without oneDNN."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(1, 4, conv.weight.shape, generator=generator))
    x = torch.randint(-3, 4, (16, 1, 32, 32), generator=generator).float()
    return Pair(conv, attention_from_conv(conv), x)


@pytest.mark.skipif(not HAS_NNPACK, reason="torch without NNPACK")
def test_without_onednn_the_layer_is_a_plain_sum_and_torch_s_convolution_is_not() -> None:
    case = transformed()
    with without_onednn():
        certificate = certify(case.layer, case.conv, case.x)
        assert certificate.holds
        assert (certificate.error == 0).all()
        assert certificate.conv_error.max() > certificate.bound.max()  # NNPACK's own


@pytest.mark.skipif(not HAS_NNPACK, reason="torch without NNPACK")
def test_bounds_that_are_summed_in_float32_are_summed_plainly_too() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    x = torch.zeros(16, 2, 24, 24)
    x[:, :, 12, 12] = 1e6  # whose transform smears what it errs by over its tile
    layer = attention_from_conv(conv)
    with without_onednn():
        together = certify(layer, conv, x)
        # Fifteen images and one are too few to be transformed.
        parts = [certify(layer, conv, part) for part in (x[:15], x[15:])]
    assert together.holds
    assert torch.equal(together.bound, torch.cat([part.bound for part in parts]))


@pytest.mark.skipif(not HAS_NNPACK, reason="torch without NNPACK")
def test_assert_equivalent_names_what_may_have_transformed_a_module_of_others() -> None:
    case = transformed()
    with without_onednn():
        assert_equivalent(case.layer, case.conv, case.x)
        message = disagreement(case.conv, case.conv, case.x)
        for word in ("NNPACK", "torch.backends.mkldnn.enabled", "torch.backends.nnpack.flags"):
            assert word in message
        with torch.backends.nnpack.flags(enabled=False):  # the way out that it names
            assert_equivalent(case.conv, case.conv, case.x)
    wrong = disagreement(Constant(case.conv(case.x).detach() + 1), case.conv, case.x)
    assert "NNPACK" not in wrong


@pytest.mark.parametrize("format", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sharpness", [None, 2.0], ids=str)
def test_under_autocast_nothing_is_compared_and_the_way_out_is_named(
    format: torch.dtype, sharpness: float | None
) -> None:
    case = pair(sharpness)
    comparisons: tuple[Callable[[], object], ...] = (
        lambda: certify(case.layer, case.conv, case.x),
        lambda: assert_equivalent(case.layer, case.conv, case.x),
        lambda: assert_equivalent(case.conv, case.conv, case.x),
    )
    with torch.autocast("cpu", format):
        for compare in comparisons[: 2 if sharpness else 3]:
            with pytest.raises(ValueError, match=f"autocast is on for cpu.*{format}.*accepted"):
                compare()
            with torch.autocast("cpu", enabled=False):
                compare()
    low = copy.deepcopy(case.conv).to(format)
    layer = attention_from_conv(low, sharpness=sharpness)
    assert certify(layer, low, case.x.to(format)).holds
