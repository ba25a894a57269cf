"""Exported and compiled layers run on images of any size, as many graphs as the convolution has.

Numbers are integers, and sizes are those that torch is told to keep dynamic: it raises where one is
made a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from constructions import attention_from_conv, certify, convert, lower
from constructions.encodings import Gaussian
from tests.support.helpers import filled, integers
from tests.support.libraries import imported

EVERY_SIZE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
SHAPES = ((2, 2, 9, 8), (3, 2, 12, 13), (1, 2, 5, 7), (4, 2, 20, 4), (1, 2, 33, 70))
THOROUGH = pytest.mark.thorough  # an export takes a second, and there are many
STRICT = pytest.mark.parametrize(
    "strict", [True, pytest.param(False, marks=THOROUGH)], ids=["strict", "not strict"]
)
EVALUATIONS = pytest.mark.parametrize("evaluation", ["auto", pytest.param("dense", marks=THOROUGH)])


def names(*always: str) -> list[Any]:
    """The convolutions, all but some of them for thorough runs."""
    return [name if name in always else pytest.param(name, marks=THOROUGH) for name in CONVOLUTIONS]


def exported(layer: nn.Module, strict: bool, sizes: Mapping[int, Any] = EVERY_SIZE) -> Any:
    """The layer as exported with one image, for sizes as they are given."""
    torch.compiler.reset()
    x = integers(2, 2, 9, 8)
    return torch.export.export(layer, (x,), dynamic_shapes=(sizes,), strict=strict).module()


def image(shape: tuple[int, ...]) -> Tensor:
    """Integers of a batch of their own."""
    return integers(*shape)


def padded(mode: str) -> nn.Module:
    """A convolution with a border."""
    kind: Any = nn.Conv2d
    conv: nn.Module = kind(2, 3, 3, padding=1, padding_mode=mode)
    return filled(conv)


CONVOLUTIONS: dict[str, Any] = {
    **{mode: lambda mode=mode: padded(mode) for mode in ("zeros", "replicate", "reflect")},
    "circular": lambda: padded("circular"),
    "strided, dilated": lambda: filled(nn.Conv2d(2, 3, (3, 2), 2, padding=(1, 2), dilation=2)),
    "transposed": lambda: filled(nn.ConvTranspose2d(2, 3, 3, 2, padding=1, output_padding=1)),
    "groups": lambda: filled(nn.Conv2d(2, 4, 3, padding=1, groups=2)),
}
POOLINGS: dict[str, Any] = {
    "whole windows": lambda: nn.AvgPool2d(2),
    "padding counted": lambda: nn.AvgPool2d(3, 2, 1),
    "pixels counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "ceil mode": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "divisor": lambda: nn.AvgPool2d(2, 1, divisor_override=3),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "saturated": {},
    "saturated, padded": {"boundary": "padded"},
    "finite": {"sharpness": 3.0},
    "finite, padded": {"sharpness": 3.0, "boundary": "padded"},
}


@pytest.mark.parametrize(
    ("options", "strict"),
    [
        ("saturated", True),
        ("finite", False),
        pytest.param("finite", True, marks=THOROUGH),
        pytest.param("saturated", False, marks=THOROUGH),
        pytest.param("saturated, padded", True, marks=THOROUGH),
        pytest.param("finite, padded", True, marks=THOROUGH),
    ],
    ids=lambda value: value if isinstance(value, str) else "strict" if value else "not strict",
)
@pytest.mark.parametrize("name", names("circular", "transposed"))
def test_exported_layer_has_the_bits_of_the_layer_on_images_of_any_size(
    name: str, options: str, strict: bool
) -> None:
    conv = CONVOLUTIONS[name]()
    layer = attention_from_conv(conv, **OPTIONS[options])
    module = exported(layer, strict)
    for x in map(image, SHAPES):
        with torch.no_grad():
            y = module(x)
            expected = layer(x)
            if x.shape[2] < 64 and x.shape[3] < 64:
                assert torch.equal(y, expected)
            else:
                # Long axes are multiplied in spans, in an order of their own.
                assert y.shape == expected.shape
            if layer.positional_sharpness is None:
                assert torch.equal(y, conv(x))


@STRICT
@pytest.mark.parametrize(
    "name", [n if n == "ceil mode" else pytest.param(n, marks=THOROUGH) for n in POOLINGS]
)
def test_exported_pooling_has_the_bits_of_the_layer_on_images_of_any_size(
    name: str, strict: bool
) -> None:
    layer = attention_from_conv(POOLINGS[name]())
    module = exported(layer, strict)
    for shape in SHAPES[:4]:
        assert torch.equal(module(image(shape)), layer(image(shape)))


@STRICT
@pytest.mark.parametrize(
    "encoding",
    [
        "absolute_quadratic",
        "periodic",
        *(
            pytest.param(name, marks=THOROUGH)
            for name in ("gaussian", "flattened", "circle", "bias_table")
        ),
    ],
)
@EVALUATIONS
def test_exported_encoding_has_a_gap_on_every_grid(
    encoding: str, evaluation: str, strict: bool
) -> None:
    conv = filled(nn.Conv2d(2, 2, (1, 2)))
    layer = attention_from_conv(conv, encoding=encoding, evaluation=evaluation)
    module = exported(layer, strict)
    for shape in SHAPES[:4]:
        assert torch.equal(module(image(shape)), conv(image(shape)))


# Gaps without a closed form -----------------------------------------------------------------------

UP_TO = {0: Dim.AUTO, 2: Dim("height", max=24), 3: Dim("width", max=20)}
NO_FORM = ["rotary", "sinusoidal", Gaussian(((2.0, 0.5), (0.5, 1.0)))]


@EVALUATIONS
@pytest.mark.parametrize("encoding", NO_FORM, ids=str)
def test_gap_without_a_closed_form_is_that_of_the_largest_grid(
    encoding: Any, evaluation: str
) -> None:
    conv = filled(nn.Conv2d(2, 3, (1, 2), padding=1))
    layer = attention_from_conv(conv, encoding=encoding, evaluation=evaluation)
    module = exported(layer, True, UP_TO)
    for shape in ((3, 2, 9, 8), (2, 2, 24, 20), (1, 2, 5, 6)):
        assert torch.equal(module(image(shape)), conv(image(shape)))


@pytest.mark.parametrize(
    ("sizes", "sharpness", "accepted"),
    [
        (EVERY_SIZE, None, "a Dim with a max for each dynamic size"),
        (UP_TO, 3.0, "static shapes, a saturated layer, or another encoding"),
    ],
    ids=["no largest grid", "a finite sharpness"],
)
@pytest.mark.parametrize("encoding", NO_FORM, ids=str)
def test_gap_that_is_not_known_on_every_grid_is_refused(
    encoding: Any, sizes: Mapping[int, Any], sharpness: float | None, accepted: str
) -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    layer = attention_from_conv(conv, encoding=encoding, sharpness=sharpness)
    with pytest.raises(Exception, match="whose gap has no closed form") as caught:
        exported(layer, True, sizes)
    assert accepted in str(caught.value)
    with pytest.raises(ValueError, match="accepted: strict=True"):
        exported(layer, False, sizes)


@STRICT
def test_mixing_heads_are_refused_on_dynamic_sizes(strict: bool) -> None:
    layer = attention_from_conv(nn.Conv2d(2, 3, 3, padding=1), encoding="scalar")
    with pytest.raises(Exception, match="accepted: static shapes, or another encoding"):
        exported(layer, strict)


# Graphs -------------------------------------------------------------------------------------------


def graphs(module: nn.Module) -> int:
    """How many graphs twenty images of different sizes and batches take."""
    torch.compiler.reset()
    counter: Any = CompileCounter()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    with torch.no_grad():
        for i in range(20):
            compiled(image((1 + i % 3, 2, 6 + i, 7 + 3 * i % 11)))
    count: int = counter.frame_count
    return count


@pytest.mark.parametrize("name", names("circular"))
def test_compiled_layer_has_as_many_graphs_as_the_convolution(name: str) -> None:
    conv = CONVOLUTIONS[name]()
    ways = attention_from_conv(conv), attention_from_conv(conv, sharpness=3.0)
    assert [graphs(way) for way in ways] == [graphs(conv)] * len(ways)


@THOROUGH
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_dense_and_lowered_layers_have_as_many_graphs_as_the_convolution(mode: str) -> None:
    conv: Any = padded(mode)
    dense = attention_from_conv(conv, evaluation="dense")
    lowered = lower(attention_from_conv(conv, sharpness=3.0))
    assert [graphs(dense), graphs(lowered)] == [graphs(conv)] * 2


@THOROUGH
def test_compiled_pooling_has_as_many_graphs_as_the_pooling() -> None:
    assert graphs(attention_from_conv(nn.AvgPool2d(2))) == graphs(nn.AvgPool2d(2))


# ONNX ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sharpness", [None, 3.0])
@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
def test_converted_network_runs_in_onnxruntime(
    mode: str, sharpness: float | None, tmp_path: Path
) -> None:
    network = nn.Sequential(padded(mode), nn.ReLU(), filled(nn.Conv2d(3, 2, 2, stride=2)))
    model = convert(network, sharpness=sharpness).eval()
    run = in_onnxruntime(model, tmp_path)
    for shape in SHAPES[:2]:
        x = image(shape)
        with torch.no_grad():
            expected = model(x)
        if sharpness is None:
            assert torch.equal(run(x), expected)
        else:  # no bound is carried through a network
            assert run(x).shape == expected.shape


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
def test_soft_layer_in_onnxruntime_is_within_its_certificate(mode: str, tmp_path: Path) -> None:
    conv: Any = padded(mode)
    layer = attention_from_conv(conv, sharpness=1.5).eval()
    run = in_onnxruntime(layer, tmp_path)
    for shape in SHAPES[:2]:
        x, of_runtime = image(shape), attention_from_conv(conv, sharpness=1.5)
        y = run(x)
        of_runtime.register_forward_hook(lambda *_, y=y: y)
        assert certify(of_runtime, conv, x).holds


def in_onnxruntime(model: nn.Module, folder: Path) -> Callable[[Tensor], Tensor]:
    """The model exported for images of every size, as onnxruntime computes it."""
    imported("onnx"), imported("onnxscript")  # what torch exports with
    runtime = imported("onnxruntime")
    file = str(folder / "network.onnx")
    sample = (integers(2, 2, 9, 8),)
    program: Any = torch.onnx.export(
        model, sample, dynamo=True, dynamic_shapes=(EVERY_SIZE,), verbose=False
    )
    program.save(file)
    session = runtime.InferenceSession(file)

    def run(x: Tensor) -> Tensor:
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        return torch.from_numpy(y)

    return run
