"""A saturated layer hands its own parameter to the convolution: no copy, and no matrix product.

What is remembered of the structure is remembered for a version of the tensors, so that every edit
in place counts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from constructions import attention_from_conv, convert
from constructions.formats import FORMATS
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.structure import kernel
from tests.support.helpers import filled, integers
from tests.support.strategies import Convolution

CONVOLUTIONS: dict[str, Callable[[], Convolution]] = {
    "1-D": lambda: nn.Conv1d(4, 4, 3, padding=1),
    "2-D": lambda: nn.Conv2d(4, 4, (2, 3)),
    "3-D": lambda: nn.Conv3d(4, 4, (3, 2, 1)),
    "fewer outputs": lambda: nn.Conv2d(6, 3, 3, padding=1, stride=2),
    "more outputs": lambda: nn.Conv2d(3, 6, 3, padding=2, dilation=2),
    "one tap": lambda: nn.Conv2d(4, 4, 1),
    "in groups": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "fewer outputs in groups": lambda: nn.Conv1d(8, 4, 3, groups=2),
    "more outputs in groups": lambda: nn.Conv3d(4, 8, 2, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "depthwise and more outputs": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "replicated": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, bias=False),
    "transposed in groups": lambda: nn.ConvTranspose1d(4, 8, 3, stride=2, groups=2),
}
EVERY_CONVOLUTION = pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))


def kernel_of(layer: MultiHeadSelfAttention, dtype: torch.dtype) -> Tensor:
    """The kernel that the heads of a layer make."""
    return kernel(layer.heads, layer.geometry, dtype)


COPIES = {"clone", "copy_", "_to_copy", "index_add", "cat", "mul"}
CALLS = [f"conv{of}{d}d" for of in ("", "_transpose") for d in (1, 2, 3)]
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "einsum", "matmul", "dot", "mv"}


class Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the name of every operation that runs, and how many numbers it returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.sizes.append((func.overloadpacket.__name__, result.numel()))
        return result


def share_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def image_for(conv: Convolution, dtype: torch.dtype = torch.float32) -> Tensor:
    return integers(1, conv.in_channels, *(7, 6, 5)[: len(conv.kernel_size)], dtype=dtype)


@EVERY_CONVOLUTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernel_of_the_convolution_is_the_parameter_itself(
    make: Callable[[], Convolution], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = filled(make().to(dtype)).eval()
    layer, x = attention_from_conv(conv), image_for(conv, dtype)
    assert layer.evaluation == "factored"
    kernels: list[Tensor] = []
    for name in CALLS:
        run = getattr(functional, name)

        def spied(image: Tensor, kernel: Tensor, *rest: Any, run: Any = run, **named: Any) -> Any:
            kernels.append(kernel)
            return run(image, kernel, *rest, **named)

        monkeypatch.setattr(functional, name, spied)
    with torch.no_grad(), Results() as ran:
        y = layer(x)
    (kernel,) = kernels
    assert share_storage(kernel, layer.weight)
    assert kernel.is_contiguous()
    assert kernel.shape == layer.weight.shape
    # Nothing of the kernel's size is made of it, and no matrices are multiplied.
    made = {name for name, _ in ran.sizes}
    assert not {name for name, size in ran.sizes if name in COPIES and size >= kernel.numel()}
    assert not made & PRODUCTS
    assert "convolution" in made
    with torch.no_grad():
        assert torch.equal(y, conv(x))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_kernel_is_that_of_the_convolution(dtype: torch.dtype) -> None:
    conv = filled(nn.Conv2d(4, 6, (2, 3), groups=2).to(dtype))
    layer = attention_from_conv(conv)
    with torch.no_grad():
        assert torch.equal(kernel_of(layer, dtype), conv.weight)
    assert kernel_of(layer, dtype).requires_grad
    # Of two factors the product is formed, and is the same.
    assert torch.equal(kernel_of(layer.unfreeze("output"), dtype), conv.weight)


@pytest.mark.parametrize("outputs", [2, 6], ids=["fewer outputs", "more outputs"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_kernel_of_two_factors_is_their_product(outputs: int, dtype: torch.dtype) -> None:
    conv = filled(nn.Conv1d(6, outputs, 2, groups=2).to(dtype))
    layer = attention_from_conv(conv).unfreeze("value", "output")
    with torch.no_grad():
        for factor in (layer.value, layer.output):
            assert factor is not None
            factor.add_(integers(*factor.shape, dtype=dtype))
        value, output = layer.head_matrices()
        product = (value.double() @ output.double()).permute(1, 3, 2, 0)
    assert torch.equal(kernel_of(layer, dtype).double(), product.reshape(conv.weight.shape))
    assert torch.equal(layer.weight, kernel_of(layer, dtype))


def test_parameter_that_is_not_contiguous_is_read_by_its_entries() -> None:
    conv = filled(nn.Conv2d(4, 4, (2, 3)))
    layer, x = attention_from_conv(conv), image_for(conv)
    with torch.no_grad():
        layer.weight = nn.Parameter(layer.weight.contiguous(memory_format=torch.channels_last))
        assert not layer.weight.is_contiguous()
        assert torch.equal(layer(x), conv(x))
        layer.weight[1, 2, 1, 2] += 1
        assert not torch.equal(layer(x), conv(x))


def test_heads_out_of_order_or_sent_to_one_tap_make_a_kernel_of_their_own() -> None:
    conv = filled(nn.Conv2d(3, 2, 2))
    layer = attention_from_conv(conv)
    taps = conv.weight.detach().flatten(2)
    layer.positional_shift[[0, 3]] = layer.positional_shift[[3, 0]]
    with torch.no_grad():
        assert torch.equal(kernel_of(layer, torch.float32).flatten(2), taps[..., [3, 1, 2, 0]])
        layer.positional_shift[:] = layer.positional_shift[:1].clone()
        kernel = kernel_of(layer, torch.float32).flatten(2)
        assert torch.equal(kernel[..., 3], taps.sum(-1))
        assert not kernel[..., :3].any()


@pytest.mark.parametrize("by", ["beyond the far end", "before the first", "between two"])
@pytest.mark.parametrize("name", ["1-D", "2-D", "3-D", "more outputs", "transposed"])
def test_head_moved_off_the_kernel_is_not_factored(name: str, by: str) -> None:
    # In two dimensions (0, 3) of a 2 x 3 kernel and (1, 0) have one place in memory: run as a
    # kernel, a head one beyond the far end of a row would count as the first of the next.
    conv = filled(CONVOLUTIONS[name]().double())
    x = image_for(conv, torch.float64)
    for axis, (size, dilation) in enumerate(zip(conv.kernel_size, conv.dilation, strict=True)):
        layer = attention_from_conv(conv, boundary="padded")
        explicit = attention_from_conv(conv, boundary="padded", evaluation="factored")
        definition = attention_from_conv(conv, boundary="padded", evaluation="dense")
        assert layer.shares_structure()
        shifts = layer.positional_shift
        far, near = shifts[:, axis].argmax(), shifts[:, axis].argmin()
        head, step = {
            "beyond the far end": (far, dilation),
            "before the first": (near, -dilation),
            "between two": (near, dilation / 2),
        }[by]
        for moved in (layer, explicit, definition):
            moved.positional_shift[head, axis] += step
        assert not layer.shares_structure(), (axis, size)
        assert layer.evaluation != "factored"
        with torch.no_grad():
            assert torch.equal(layer(x), definition(x))
            with pytest.raises(ValueError, match="'factored' does not apply"):
                explicit(x)


def test_every_layer_of_a_converted_network_uses_its_parameter_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3),
        nn.Conv2d(8, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 7, padding=3, groups=8),
    )
    network: Any = convert(filled(block).eval())
    kernels: list[Tensor] = []
    run = functional.conv2d

    def spied(image: Tensor, kernel: Tensor, *rest: Any, **named: Any) -> Tensor:
        kernels.append(kernel)
        return run(image, kernel, *rest, **named)

    monkeypatch.setattr(functional, "conv2d", spied)
    with torch.no_grad():
        network(integers(1, 3, 16, 16))
    assert all(share_storage(k, layer.weight) for k, layer in zip(kernels, network, strict=True))
