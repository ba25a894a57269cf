"""Layers by stock kernels: `scaled_dot_product_attention` of integers, FlexAttention of a table.

The theorem of both is T14, absolute scores; their rounding is that of T7.
"""

import functools
import math
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from constructions import attention_from_conv, certify
from constructions.certificate import rounding
from constructions.encodings import Absolute, Gaussian, Periodic, Quadratic, Rotary
from constructions.evaluation import flex, fused
from constructions.formats import FORMATS, unit_roundoff
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.parameters import PARTS
from constructions.normalisers import Softmax
from tests.pages.options import agrees, truth_of
from tests.support import heads
from tests.support.helpers import edit_matrices, filled, integers, traced
from tests.support.ledger import record
from tests.support.strategies import PADDING_MODES, a_share, integer_cases, real_cases, sharpnesses

SLUG = "absolute_scores_select_the_same_shift"
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")
bounded = pytest.mark.evidence("layer_error_is_certified", "property")
rejected = pytest.mark.evidence("layer_error_is_certified", "control")

ENCODINGS: dict[str, Any] = {
    "quadratic": Quadratic(),
    "absolute": Absolute(Quadratic()),
    "gaussian": Gaussian(((2.0, 1.0), (1.0, 3.0))),
}
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)


def compiles(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs inductor, for many seconds."""
    for mark in (
        pytest.mark.thorough,
        pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++"),
    ):
        test = mark(test)
    return test


def of(conv: Any, evaluation: str, **options: Any) -> MultiHeadSelfAttention:
    """The layer, nothing of it trained: neither kernel has all derivatives."""
    layer: MultiHeadSelfAttention = attention_from_conv(conv, evaluation=evaluation, **options)
    return layer.requires_grad_(False)


# Fused --------------------------------------------------------------------------------------------


@exact
@given(
    data=st.data(),
    dtype=st.sampled_from(FORMATS),
    boundary=st.sampled_from(["auto", "padded"]),
)
def test_fused_layers_are_the_convolution_of_integers(
    data: st.DataObject, dtype: torch.dtype, boundary: str, device: str
) -> None:
    case = data.draw(integer_cases(dtype))
    truth = truth_of(case)
    case = case.to(device)
    name = data.draw(st.sampled_from(["quadratic", "absolute_quadratic", "gaussian"]))
    if name == "gaussian" and case.conv.padding_mode == "circular":
        boundary = "padded"
    circular = case.conv.padding_mode == "circular" and boundary == "auto"
    layer = of(
        case.conv,
        "dense" if circular else "fused",  # natural circles are no integers
        encoding=name,
        boundary=boundary,
    )
    assert agrees(layer, case, truth)
    record(device=device, dtype=dtype)


@bounded
@given(
    data=st.data(),
    dtype=st.sampled_from(FORMATS),
    sharpness=sharpnesses(),
    boundary=st.sampled_from(["auto", "padded"]),
)
def test_fused_layers_are_within_their_certificate(
    data: st.DataObject, dtype: torch.dtype, sharpness: float, boundary: str
) -> None:
    case = data.draw(real_cases(dtype))
    circular = case.conv.padding_mode == "circular"
    layer = of(case.conv, "fused", sharpness=sharpness, boundary="padded" if circular else boundary)
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    assert certificate.holds
    record(ratio=certificate.ratio, dtype=dtype)


@bounded
@pytest.mark.parametrize("sharpness", [None, 3.0], ids=["saturated", "soft"])
@pytest.mark.parametrize("pixel", [5.88e-39, 1e-39, 9.2e-41])
def test_subnormal_pixels_that_a_fused_kernel_flushes_are_in_the_bound(
    pixel: float, sharpness: float | None
) -> None:
    conv = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(conv.weight, 0.5)
    layer = attention_from_conv(conv, sharpness=sharpness, evaluation="fused")
    certificate = certify(layer, conv, torch.full((1, 1, 1), pixel, dtype=torch.bfloat16))
    assert certificate.holds
    assert certificate.bound.max() < 2.0**-120  # of numbers below the smallest normal one, 2^-126


def test_what_a_fused_head_sees_underflows_in_the_format_of_the_layer() -> None:
    # Equation (26) of T7: half of the smallest float16, times the weight.
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=torch.float16)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0, 0, 8]))
    layer = of(conv, "fused", sharpness=0.09765625)
    certificate = certify(layer, conv, torch.tensor([[[2.0**-15, 0]]], dtype=torch.float16))
    assert certificate.holds
    record(ratio=certificate.ratio, dtype=torch.float16)


@bounded
@every_format
@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_every_encoding_of_integers_is_within_its_certificate(
    name: str, mode: str, dtype: torch.dtype
) -> None:
    case = heads.generic_case(2, dtype, mode)
    boundary = "auto" if mode == "zeros" else "padded"
    for sharpness in (0.3, 7.0, 30.0):
        layer = of(
            case.conv, "fused", encoding=ENCODINGS[name], sharpness=sharpness, boundary=boundary
        )
        certificate = certify(layer, case.conv, case.x)
        assert certificate.holds
        record(ratio=certificate.ratio, dtype=dtype)


@exact
@every_format
@pytest.mark.parametrize("size", [511, 1500])
def test_digits_carry_short_formats_to_the_limit_of_the_sums(size: int, dtype: torch.dtype) -> None:
    # Equation (22). bfloat16 itself counts to 256, and float16 ends at 65504.
    conv = filled(nn.Conv1d(1, 2, 3, padding=1, dtype=dtype))
    x = integers(1, 1, size, dtype=dtype)
    assert torch.equal(of(conv, "fused")(x), conv(x).detach())


@exact
@given(
    left=st.lists(st.integers(-4095, 4095), min_size=1, max_size=8),
    right=st.lists(st.integers(-4095, 4095), min_size=1, max_size=8),
)
def test_digits_have_eight_bits_and_the_same_products(left: list[int], right: list[int]) -> None:
    # Equation (22).
    features = torch.tensor(left, dtype=torch.float64).unsqueeze(-1)
    names = torch.tensor(right, dtype=torch.float64).unsqueeze(-1)
    a, b = fused.digits(features, names, (2,), (2,))
    assert torch.equal(b @ a.T, names @ features.T)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(a.to(dtype).double(), a)
        assert torch.equal(b.to(dtype).double(), b)


@exact
def test_the_range_is_refused_beyond_and_auto_computes_it_densely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A key 1023 from the middle has 1023 + 2 * 1024 * 1023 + ...: the limit is met in between.
    conv = nn.Conv1d(1, 1, 1)
    inside, beyond = torch.ones(1, 1, 4001), torch.ones(1, 1, 4201)
    layer = of(conv, "fused")
    assert layer(inside).shape == inside.shape
    with pytest.raises(ValueError, match=r"'fused'.*sums of the scores reach.*torch.float32"):
        layer(beyond)
    # The exact limit of float64 is far off: a shorter one, for a layer that is fused by itself.
    either = of(nn.Conv2d(1, 1, 1), "auto", encoding=ENCODINGS["gaussian"], sharpness=2.0)
    assert either.evaluation == "fused"
    monkeypatch.setattr(fused, "unit_roundoff", lambda _: 2.0**-8)
    asked: list[Tensor] = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", asked.append)
    x = torch.randn(1, 1, 20, 20)
    dense = of(nn.Conv2d(1, 1, 1), "dense", encoding=ENCODINGS["gaussian"], sharpness=2.0)
    dense.load_state_dict(either.state_dict())
    assert torch.equal(either(x), dense(x))
    assert not asked


@exact
def test_heads_with_shifts_off_the_kernel_are_fused(device: str) -> None:
    # They share no operator, and are not factored; their shifts are still integers.
    case = heads.generic_case(2, torch.float64, "zeros").to(device)
    layers = [of(case.conv, name, boundary="padded") for name in ("auto", "dense")]
    for layer in layers:
        layer.positional_shift[0] += 1
        layer.positional_shift[1] -= 7
    assert layers[0].evaluation == "fused"
    assert torch.equal(layers[0](case.x), layers[1](case.x))


def rounding_of_derivatives(
    weights: Tensor, values: Tensor, matrices: Tensor, cotangent: Tensor
) -> tuple[float, Tensor]:
    """How far derivatives in sharpness and values may be off in float64: roundings, counted.

    With g_k = Σ_o G_o Σ_c W[c, o] X_{k,c} a softmax hands a_k (g_k - Σ_j a_j g_j) back to the score
    of key k; the derivative in the sharpness is the sum of that times the score's own, over heads,
    queries and keys, and that in the values the sum of a_k Σ_o G_o W[c, o] over heads and queries.
    Each is a sum of products, off by at most γ_N times the sum of the products' moduli, N being no
    less than the roundings above any of them: those of an exponential (T7, equation 25), which are
    met four times, the lengths of the sums over keys, channels and features, and of the last sum.

    Args:
        weights: a, (H, Q, K), the sink included.
        values: |X|, (K, C), zero at the sink.
        matrices: |W|, (H, C, D_out).
        cotangent: |G|, (Q, D_out).
    """
    double, (heads, queries, keys), channels = torch.float64, weights.shape, values.shape[1]
    u, features = unit_roundoff(double), 5
    exponential = math.ceil(rounding.streamed_error(double, 0.0, keys) / u)
    each = exponential + keys + channels + cotangent.shape[1] + features
    growth = rounding.gamma(4 * each + heads * queries * keys, double)
    handed = torch.einsum("qo,hco->hqc", cotangent, matrices)
    of_keys = handed @ values.T
    back = weights * (of_keys + (weights * of_keys).sum(dim=-1, keepdim=True))
    # Of a score, Σ |feature| |name|: about the middle keys are within 3 and targets within 4 on
    # both axes, 2 (3 + 4)², and 1 for the sink.
    scores = 2 * (3 + 4) ** 2 + 1
    # Twice for what these sums may have lost themselves.
    return 2 * growth * scores * back.sum().item(), 2 * growth * torch.einsum(
        "hqk,hqc->kc", weights, handed
    )


def test_gradient_in_the_sharpness_is_that_of_the_dense_layer() -> None:
    conv = filled(nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64))
    x = integers(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    cotangent = integers(1, 2, 4, 5, dtype=torch.float64).roll(1)
    found = []
    for evaluation in ("fused", "dense"):
        layer = attention_from_conv(conv, sharpness=1.5, evaluation=evaluation)
        layer.unfreeze("sharpness")
        assert layer.positional_sharpness is not None
        assert layer.evaluation == evaluation
        wanted = layer.positional_sharpness, x
        found.append(torch.autograd.grad(layer(x), wanted, cotangent))
    with torch.no_grad():
        value, output = layer.head_matrices()
        sharpness, of_values = rounding_of_derivatives(
            layer.attention_weights((4, 5)),
            F.pad(x[0].flatten(1).T, (0, 0, 0, 1)).abs(),
            (value @ output).squeeze(1).abs(),
            cotangent[0].flatten(1).T.abs(),
        )
    (fused_s, fused_x), (dense_s, dense_x) = found
    assert abs(fused_s - dense_s) <= 2 * sharpness < abs(dense_s)
    of_pixels = of_values[:-1].T.reshape(1, 2, 4, 5)
    assert ((fused_x - dense_x).abs() <= 2 * of_pixels).all()
    # Bounds so small that a derivative that is wrong in one part of a million is found.
    assert sharpness < 2.0**-20 * abs(dense_s)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"encoding": "rotary"}, "not known to be integers"),
        ({"encoding": Gaussian(((0.5, 0.25), (0.25, 0.5)))}, "not known to be integers"),
        ({"encoding": Absolute(Rotary())}, "not known to be integers"),
        ({"encoding": "scalar"}, "not known to be integers"),
        ({"encoding": "bias_table"}, "not known to be integers"),
        ({"encoding": Periodic(), "boundary": "natural"}, "not known to be integers"),
        ({"normaliser": "sparsemax"}, "stock kernels have the softmax"),
    ],
    ids=str,
)
def test_what_is_not_exact_is_refused(options: dict[str, Any], told: str) -> None:
    is_circle = isinstance(options.get("encoding"), Periodic)
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular" if is_circle else "zeros")
    with pytest.raises(ValueError, match=f"evaluation 'fused' does not apply: .*{told}"):
        attention_from_conv(conv, evaluation="fused", **options)


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [
        ("content", "query", "content terms are trained, or not zero"),
        ("shifts", "positional_shift", "positional parameters are trained"),
        ("shifts", "positional_key", "positional parameters are trained"),
    ],
)
def test_what_becomes_trained_is_refused(part: str, name: str, told: str) -> None:
    layer = of(nn.Conv2d(1, 1, 3), "fused").unfreeze(part)
    for other in PARTS[part]:
        getattr(layer, other).requires_grad_(other == name)
    with pytest.raises(ValueError, match=told):
        layer(torch.ones(1, 1, 5, 5))


def test_shifts_between_pixels_are_refused() -> None:
    layer = of(nn.Conv2d(1, 1, 3), "fused")
    layer.positional_shift[0, 0] += 0.25
    with pytest.raises(ValueError, match="a shift or a key matrix is not made of integers"):
        layer(torch.ones(1, 1, 5, 5))


@control
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_features_in_one_digit_select_wrongly(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(fused, "digits", lambda features, names, *_: (features, names))
    conv = nn.Conv1d(1, 1, 3, padding=1, dtype=dtype)
    x = torch.randn(1, 1, 601, dtype=torch.float64).to(dtype)
    assert not torch.equal(of(conv, "fused")(x), of(conv, "factored")(x))


@rejected
def test_a_kernel_that_scales_its_operands_breaks_the_certificate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Why such kernels are not asked at a finite sharpness.
    conv = nn.Conv1d(1, 1, 3, padding=1)
    x = torch.randn(1, 1, 1501)
    layer = of(conv, "fused", sharpness=1.7)
    assert certify(layer, conv, x).holds
    monkeypatch.setattr(fused, "_scaling_scores", lambda: sdpa_kernel(SDPBackend.MATH))
    assert not certify(layer, conv, x).holds


@control
def test_a_sink_that_no_row_is_lifted_to_pads_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    x = torch.randn(1, 1, 6, 7)
    layer = of(conv, "fused", sharpness=2.0)
    assert certify(layer, conv, x).holds
    products = fused._products

    def low(*arguments: Any) -> tuple[Tensor, Tensor]:
        features, names = products(*arguments)
        return features, F.pad(names[..., :-1], (0, 1), value=-2.0)

    monkeypatch.setattr(fused, "_products", low)
    assert not certify(layer, conv, x).holds


# Flex ---------------------------------------------------------------------------------------------


@exact
@pytest.mark.usefixtures("eager")
@settings(max_examples=settings().max_examples // 4)  # without its compiler it is slow
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_flex_layers_are_the_convolution_of_integers(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype))
    name = data.draw(st.sampled_from(["quadratic", "circle", "bias_table", "rotary"]))
    replicate = case.conv.padding_mode == "replicate" and name == "quadratic"
    boundary = "padded" if replicate else data.draw(st.sampled_from(["auto", "padded"]))
    layer = of(case.conv, "flex", encoding=name, boundary=boundary)
    assert agrees(layer, case, truth_of(case))


@bounded
@pytest.mark.usefixtures("eager")
@a_share
@given(
    data=st.data(),
    # Without its compiler it flushes subnormal numbers in bfloat16, which the theorem excludes.
    dtype=st.sampled_from([torch.float32, torch.float16]),
    sharpness=sharpnesses(),
    name=st.sampled_from(["quadratic", "circle"]),
)
def test_flex_layers_are_within_their_certificate(
    data: st.DataObject, dtype: torch.dtype, sharpness: float, name: str
) -> None:
    case = data.draw(real_cases(dtype))
    replicate = case.conv.padding_mode == "replicate"
    boundary = "padded" if replicate else data.draw(st.sampled_from(["auto", "padded"]))
    if name != "quadratic" and case.conv.padding_mode == "circular":
        boundary = "padded"
    layer = of(case.conv, "flex", encoding=name, sharpness=sharpness, boundary=boundary)
    with torch.no_grad():
        certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    assert certificate.holds
    record(ratio=certificate.ratio, dtype=dtype)


def images() -> Iterator[tuple[nn.Module, Tensor, float | None]]:
    """Images of several blocks of 128 tokens, at three sharpnesses."""
    for options in ({"padding": 1}, {"padding": 2, "dilation": 2, "stride": 2}):
        for sharpness in (None, 30.0, 2.0):
            yield nn.Conv2d(2, 3, 3, **options), torch.randn(1, 2, 21, 37), sharpness  # type: ignore[arg-type]


@exact
@pytest.mark.usefixtures("eager")
def test_blocks_beyond_the_band_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    # Equation (23): the block mask is only there to save time, and saves some.
    band, masks = flex._band, list[Any]()

    def noted(*arguments: Any) -> Any:
        masks.append(band(*arguments))
        return masks[-1]

    for conv, x, sharpness in images():
        layer = of(conv, "flex", sharpness=sharpness)
        monkeypatch.setattr(flex, "_band", noted)
        sparse = layer(x)
        monkeypatch.setattr(flex, "_band", lambda *_: None)
        assert torch.equal(sparse, layer(x))
        visits = masks[-1].full_kv_num_blocks
        some = int(visits.sum()) < visits.numel() * masks[-1].full_kv_indices.shape[-1]
        assert some or sharpness == 2.0


@control
@pytest.mark.usefixtures("eager")
def test_a_band_that_is_too_narrow_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 21, 37)
    layer = of(conv, "flex", sharpness=0.05)
    whole = layer(x)
    monkeypatch.setattr(Softmax, "one_hot_gap", lambda *_: 1.0)
    assert not torch.equal(layer(x), whole)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"encoding": "absolute_quadratic"}, "not those of one shift at a displacement"),
        ({"encoding": "scalar"}, "not those of one shift at a displacement"),
        ({"normaliser": "top1"}, "stock kernels have the softmax"),
        ({"boundary": "natural"}, "unless boundary is 'padded'"),
    ],
    ids=str,
)
def test_what_flex_attention_cannot_hold_is_refused(options: dict[str, Any], told: str) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate")
    with pytest.raises(ValueError, match=f"evaluation 'flex' does not apply: .*{told}"):
        attention_from_conv(conv, evaluation="flex", **{"boundary": "padded", **options})


def test_what_torch_has_no_kernel_for_is_refused() -> None:
    wide = nn.Conv1d(1, 1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="no FlexAttention for float64 on the CPU"):
        of(wide, "flex")(torch.ones(1, 1, 9, dtype=torch.float64))
    trained = attention_from_conv(nn.Conv1d(1, 1, 3), evaluation="flex")
    with pytest.raises(ValueError, match=r"no backward pass on the CPU.*torch.no_grad"):
        trained(torch.ones(1, 1, 9))


@bounded
@compiles
def test_compiled_flex_attention_is_within_its_certificate() -> None:
    for conv, x, sharpness in images():
        for dtype in (torch.float32, torch.bfloat16):
            conv, x = conv.to(dtype), x.to(dtype)
            layer = of(conv, "flex", sharpness=sharpness)
            with torch.no_grad():
                certificate = certify(layer, conv, x)  # type: ignore[arg-type]
                if sharpness is None:
                    assert torch.equal(layer(x), of(conv, "dense")(x))
            assert certificate.holds
            record(ratio=certificate.ratio, dtype=x.dtype)


def test_flex_attention_is_compiled_for_more_shapes_than_dynamo_keeps_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo import config, exc

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(flex, "_compiled", functools.cache(flex._compiled.__wrapped__))
    layer = of(nn.Conv1d(1, 1, 3), "flex")
    with torch.no_grad(), config.patch(recompile_limit=1):
        for size in (3, 4):
            layer(torch.ones(1, 1, size))
        monkeypatch.setattr(flex, "SHAPES", 0)
        with pytest.raises(exc.FailOnRecompileLimitHit, match="fullgraph"):
            layer(torch.ones(1, 1, 5))


@pytest.mark.evidence("dense_attention_spreads_non_finite_pixels", "exact")
@compiles
def test_a_band_keeps_a_non_finite_pixel_to_its_blocks() -> None:
    conv, x = nn.Conv1d(1, 1, 3, padding=1), torch.randn(1, 1, 128 * 5)
    x[..., 300] = torch.inf
    y, alone = of(conv, "flex")(x), of(conv, "dense")(x)
    # Block 2 holds the pixel; of the blocks beside it a head looks into it, each row of them.
    assert y[..., 128:512].isfinite().logical_not().all()
    assert y[..., :128].isfinite().all()
    assert y[..., 512:].isfinite().all()
    assert alone.isnan().all()


# Both ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [None, 0.1])
def test_fused_layers_take_no_images(sharpness: float | None) -> None:
    layer = of(nn.Conv1d(3, 2, 3, padding=1), "fused", sharpness=sharpness)
    assert layer(torch.ones(0, 3, 5)).shape == (0, 2, 5)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("evaluation", ["fused", "flex"])
def test_swapped_heads_and_silent_heads_change_every_evaluation_alike(evaluation: str) -> None:
    case = heads.generic_case(2, torch.float32, "zeros")
    layers = [of(case.conv, name) for name in (evaluation, "dense")]
    before = layers[1](case.x)
    for layer in layers:
        layer.positional_shift[[0, 1]] = layer.positional_shift[[1, 0]]
        edit_matrices(layer, lambda matrices: matrices[2].zero_())
    ys = [layer(case.x) for layer in layers]
    assert torch.equal(ys[0], ys[1])
    assert not torch.equal(ys[1], before)


@pytest.mark.evidence("dense_attention_spreads_non_finite_pixels", "exact")
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("evaluation", ["fused", "flex"])
def test_stock_kernels_spread_a_non_finite_pixel_as_dense_attention_does(evaluation: str) -> None:
    case = heads.generic_case(2, torch.float32, "zeros")
    for value in (torch.nan, torch.inf):
        case.x[0, 0, 1, 1] = value
        y = of(case.conv, evaluation)(case.x)
        assert y.isnan().all() == of(case.conv, "dense")(case.x).isnan().all()
        assert bool(y.isnan().all())


class Exporting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.compiler.is_exporting()


@pytest.mark.parametrize("padding", [pytest.param(0, marks=pytest.mark.thorough), 2])
def test_traced_code_fuses_saturated_layers(padding: int) -> None:
    if traced(Exporting())(torch.zeros(1)):
        pytest.skip("in torch 2.11 dynamo says that it always exports, where heads are not fused")
    layer = of(filled(nn.Conv2d(1, 2, 3, padding=padding)), "fused")
    whole = traced(layer)
    for size in (5, 9):
        x = integers(1, 1, size, 6)
        assert torch.equal(whole(x), layer(x))
