"""The flags of torch decide which products a certificate allows for, on any device.

The arithmetic is `test_layer_error_is_certified`'s; here is who gets which, and no GPU is needed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify
from constructions.certificate import certificate, equivalence
from constructions.formats import FORMATS
from constructions.matrix_units import (
    IMAGES_TRANSFORMED,
    PRECISION,
    Operation,
    Products,
    Settings,
    may_transform,
    products_of,
)
from tests.support.ledger import ROOT
from tests.support.matrix_units import HAS_NNPACK, flagged, without_onednn

SINGLE, DOUBLE = torch.float32, torch.float64
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
STRICT = Settings("ieee", "ieee", "ieee", "ieee")
OF_TORCH = Settings()


def bits(operation: Operation, device: str, settings: Settings) -> int:
    return products_of(operation, SINGLE, device, settings).precision


# What the flags mean ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("cuda", OF_TORCH, {"matmul": 24, "convolution": 11}),
        ("cuda", STRICT, {"matmul": 24, "convolution": 24}),
        ("cuda", Settings(cuda_matmul="tf32"), {"matmul": 11, "convolution": 11}),
        ("cuda", Settings("tf32", "ieee"), {"matmul": 11, "convolution": 11}),
        ("cpu", OF_TORCH, {"matmul": 24, "convolution": 24, "attention": 24, "any": 24}),
        ("cpu", Settings(cpu_matmul="bf16"), {"matmul": 8, "convolution": 8, "any": 8}),
        ("cpu", Settings(cpu_convolution="tf32"), {"matmul": 24, "convolution": 11, "any": 11}),
        ("xpu", Settings(cpu_matmul="tf32"), {"matmul": 11}),
        ("mps", Settings("bf16", "bf16", "bf16", "bf16"), {"matmul": 24, "convolution": 24}),
        ("cuda", Settings(cuda_matmul="a new one"), {"matmul": 8}),
        ("tpu", STRICT, {"matmul": 8, "convolution": 8, "any": 8}),
    ],
    ids=[
        "cuda_as_torch_leaves_it",
        "cuda_with_all_off",
        "cuda_with_all_on",
        "a_convolution_may_be_a_product_of_matrices",
        "cpu_as_torch_leaves_it",
        "cpu_with_bfloat16_products",
        "cpu_with_tf32_convolutions",
        "xpu_follows_onednn",
        "mps_has_no_such_unit",
        "an_unknown_setting_is_the_worst",
        "an_unknown_device_is_the_worst",
    ],
)
def test_settings_decide_how_many_bits_an_operand_keeps(
    kind: str, settings: Settings, expected: dict[Operation, int]
) -> None:
    assert {name: bits(name, kind, settings) for name in expected} == expected


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "xpu", "tpu"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_float64_is_plain_whatever_the_flags(operation: Operation, kind: str) -> None:
    worst = Settings("bf16", "bf16", "bf16", "bf16")
    assert products_of(operation, DOUBLE, kind, worst) == Products.plain(DOUBLE)


@pytest.mark.parametrize("operation", ["matmul", "convolution"])
def test_a_gpu_with_tf32_off_forms_plain_sums(operation: Operation) -> None:
    assert products_of(operation, SINGLE, "cuda", STRICT) == Products.plain(SINGLE)


@pytest.mark.parametrize("operation", ["attention", "any"])
def test_attention_on_a_gpu_is_split_even_with_tf32_off(operation: Operation) -> None:
    formed = products_of(operation, SINGLE, "cuda", STRICT)
    assert formed == Products.split()
    assert formed.exact_to == 2048
    assert formed.growth(9) > products_of("matmul", SINGLE, "cuda", STRICT).growth(9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_its_operands_and_truncates_on_a_gpu(dtype: torch.dtype) -> None:
    for operation in OPERATIONS:
        formed = products_of(operation, dtype, "cuda", OF_TORCH)
        assert formed.operand(dtype) == 0
        assert formed.step > Products.plain(formed.sums).step
    assert products_of("attention", dtype, "cuda", OF_TORCH).sums == SINGLE
    assert products_of("any", dtype, "cuda", OF_TORCH).sums == dtype
    assert products_of("any", dtype, "cpu", OF_TORCH) == Products.plain(dtype)


def test_the_worst_of_two_covers_both() -> None:
    once, split = Products.unit(SINGLE, 11), Products.split()
    both = once.or_else(split)
    for n in (1, 100, 10**5):
        assert both.growth(n) >= max(once.growth(n), split.growth(n))
        assert both.lost(n, 2.0) >= max(once.lost(n, 2.0), split.lost(n, 2.0))
    assert both == split.or_else(once)


@pytest.mark.parametrize("name", sorted(PRECISION))
@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_an_operand_is_rounded_if_it_has_more_bits_than_are_kept(
    name: str, stored: torch.dtype
) -> None:
    formed = Products.unit(SINGLE, PRECISION[name])
    longer = torch.finfo(stored).eps < 2.0 ** (1 - formed.precision)
    assert (formed.operand(stored) > 0) == (longer and name != "ieee")


# Transforms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "dtype", "kind", "expected"),
    [
        (16, SINGLE, "cpu", True),
        (10**6, SINGLE, "cpu", True),
        (15, SINGLE, "cpu", False),
        (16, DOUBLE, "cpu", False),
        (16, torch.bfloat16, "cpu", False),
        (16, SINGLE, "cuda", False),
    ],
    ids=str,
)
def test_without_onednn_a_cpu_may_transform_sixteen_images_of_float32(
    images: int, dtype: torch.dtype, kind: str, expected: bool
) -> None:
    assert not may_transform(images, dtype, kind)
    with without_onednn():
        assert may_transform(images, dtype, kind) == (expected and HAS_NNPACK)
        with torch.backends.nnpack.flags(enabled=False):
            assert not may_transform(images, dtype, kind)


@pytest.mark.skipif(not HAS_NNPACK, reason="torch without NNPACK")
@pytest.mark.parametrize("kernel", [2, 3, 5, 8, 16])
def test_torch_transforms_no_fewer_images_than_it_is_said_to(kernel: int) -> None:
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randint(-3, 4, (2, 2, kernel, kernel), generator=generator).float()
    x = torch.randint(-3, 4, (IMAGES_TRANSFORMED, 2, 32, 32), generator=generator).float()
    exact = F.conv2d(x.double(), weight.double())
    with without_onednn():
        assert torch.equal(F.conv2d(x[:-1], weight).double(), exact[:-1])
        # Were it exact, a plain sum, this file would have nothing to guard against.
        assert not torch.equal(F.conv2d(x, weight).double(), exact)


# Where they are read ------------------------------------------------------------------------------


def test_torch_lets_a_gpu_round_the_operands_of_convolutions_alone() -> None:
    if torch.get_float32_matmul_precision() == "highest":
        assert Settings.current({}) == OF_TORCH


FLAGS: dict[str, tuple[Any, str]] = {
    "cuda_matmul": (torch.backends.cuda, "matmul"),
    "cuda_convolution": (torch.backends.cudnn, "conv"),
    "cpu_matmul": (torch.backends.mkldnn, "matmul"),
    "cpu_convolution": (torch.backends.mkldnn, "conv"),
}


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_a_flag_of_torch_is_read_when_it_is_set(field: str, value: str) -> None:
    others = replace(Settings.current({}), **{field: value})
    with flagged(value, FLAGS[field]):
        assert Settings.current({}) == others


OLDER = """
import torch
from constructions.matrix_units import Settings
found = [Settings.current({})]
torch.backends.cuda.matmul.allow_tf32 = True
found.append(Settings.current({}))
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
found.append(Settings.current({}))
torch.set_float32_matmul_precision("medium")
found.append(Settings.current({}))
for each in found:
    print(each.cuda_matmul, each.cuda_convolution, each.cpu_matmul, each.cpu_convolution)
"""


def test_the_older_flags_are_read_too() -> None:
    # In a process of its own: torch does not let one process use both kinds.
    run = subprocess.run(
        [sys.executable, "-c", OLDER], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [
        "ieee tf32 ieee ieee",
        "tf32 tf32 ieee ieee",
        "ieee ieee ieee ieee",
        "tf32 ieee bf16 ieee",
    ]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NVIDIA_TF32_OVERRIDE": "1"}, {"cuda_matmul": "tf32", "cuda_convolution": "tf32"}),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, {"cuda_matmul": "ieee"}),
        ({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, {"cuda_matmul": "tf32", "cpu_matmul": "ieee"}),
        ({"DNNL_DEFAULT_FPMATH_MODE": "BF16"}, {"cpu_matmul": "bf16", "cpu_convolution": "bf16"}),
        ({"ONEDNN_DEFAULT_FPMATH_MODE": "tf32"}, {"cpu_matmul": "tf32", "cuda_matmul": "ieee"}),
        ({"DNNL_DEFAULT_FPMATH_MODE": "STRICT"}, {"cpu_matmul": "ieee"}),
    ],
    ids=["nvidia_on", "nvidia_off", "cublas_on", "onednn_bf16", "onednn_tf32", "onednn_strict"],
)
def test_the_environment_is_read_too(environment: dict[str, str], expected: dict[str, str]) -> None:
    settings = Settings.current(environment)
    assert {field: getattr(settings, field) for field in expected} == expected


@pytest.mark.parametrize("mode", ["F16", "any"])
def test_a_conversion_that_may_overflow_is_refused(mode: str) -> None:
    settings = Settings.current({"DNNL_DEFAULT_FPMATH_MODE": mode})
    with pytest.raises(ValueError, match="accepted: strict, bf16, tf32"):
        products_of("matmul", SINGLE, "cpu", settings)
    assert products_of("matmul", SINGLE, "cuda", settings).precision == 24


# Who asks for which -------------------------------------------------------------------------------


ASKED = {
    "dense": "matmul",
    "factored": "convolution",
    "fused": "attention",
    "flex": "attention",
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("evaluation", "dtype"),
    # On the CPU torch has no FlexAttention for float64.
    [(e, dtype) for e in ASKED for dtype in FORMATS if (e, dtype) != ("flex", DOUBLE)],
    ids=str,
)
def test_certify_asks_for_the_products_that_its_evaluation_forms(
    monkeypatch: pytest.MonkeyPatch, evaluation: str, dtype: torch.dtype
) -> None:
    asked = recorded(monkeypatch)
    conv = nn.Conv2d(2, 3, 3, padding=1, dtype=dtype)
    layer = attention_from_conv(conv, evaluation=evaluation)
    certify(layer, conv, torch.zeros(1, 2, 4, 4, dtype=dtype))
    wide = DOUBLE if dtype == DOUBLE else SINGLE
    assert asked == [(ASKED[evaluation], wide, "cpu")]


def test_assert_equivalent_knows_nothing_of_a_module_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = recorded(monkeypatch)
    conv = nn.Conv1d(2, 3, 3, dtype=torch.float16)
    assert_equivalent(conv, conv, torch.ones(1, 2, 8, dtype=torch.float16))
    assert asked == [("any", torch.float16, "cpu")]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.dtype, str]]:
    """What the certificate asks `products_of` from now on."""
    asked: list[tuple[str, torch.dtype, str]] = []

    def asking(operation: Operation, dtype: torch.dtype, device_type: str) -> Products:
        asked.append((operation, dtype, device_type))
        return products_of(operation, dtype, device_type)

    for module in (certificate, equivalence):
        monkeypatch.setattr(module, "products_of", asking)
    return asked


# What would stray from a GPU ----------------------------------------------------------------------


def stays(layer: nn.Module, x: Tensor) -> bool:
    """Whether a call gives the same where whatever names no device would have no numbers."""
    expected = layer(x)
    with torch.device("meta"):
        found = layer(x)
    return found.device == x.device and torch.equal(found, expected)


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "1-D groups": lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2),
    "2-D zeros": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "2-D circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "2-D replicate": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="replicate", stride=2),
    "3-D reflect": lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
@pytest.mark.parametrize("sharpness", [None, 3.0], ids=["saturated", "sharpness 3"])
def test_a_layer_makes_every_tensor_on_the_device_of_its_input(
    kind: str, evaluation: str, sharpness: float | None
) -> None:
    conv: Any = CONVOLUTIONS[kind]()
    layer = attention_from_conv(conv, evaluation=evaluation, sharpness=sharpness)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 4, *[7] * (conv.weight.dim() - 2), generator=generator)
    assert stays(layer, x)


def test_a_tensor_that_strays_is_noticed() -> None:
    class Stray(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(x.shape[-1])

    with pytest.raises(RuntimeError, match="meta"):
        stays(Stray(), torch.ones(3))
