"""The layer is a well-behaved module: copied, moved, differentiated, compiled and exported as such.

Data are integers wherever a result is compared, so that it is compared bit for bit.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.formats import FORMATS
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import Scores, enlivened, filled, integers, papers_layer, refused, traced
from tests.support.strategies import Case, Convolution, integer_cases

DTYPES = pytest.mark.parametrize("dtype", FORMATS, ids=str)


@dataclass(frozen=True)
class Spy(Scores):
    """The same, and keeps all that it is shown."""

    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, scores: Tensor) -> Tensor:
        """The scores."""
        self.seen.append(scores.detach())
        return scores


def saturated() -> MultiHeadSelfAttention:
    return attention_from_conv(filled(nn.Conv2d(4, 2, 3, padding=1, groups=2)))


def soft() -> MultiHeadSelfAttention:
    return attention_from_conv(filled(nn.Conv2d(4, 6, (2, 3), stride=(1, 2))), sharpness=0.1)


def transposed() -> MultiHeadSelfAttention:
    return attention_from_conv(filled(nn.ConvTranspose2d(4, 3, 3, stride=2, bias=False)))


def live() -> MultiHeadSelfAttention:
    return enlivened(soft())


EVERY_LAYER = pytest.mark.parametrize("make", [saturated, soft, transposed, live])


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return integers(2, 4, 3, 4, dtype=dtype)


# State --------------------------------------------------------------------------------------------


def shapes(named: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named}


def test_parameters_are_named_for_their_roles() -> None:
    layer = attention_from_conv(nn.Conv2d(4, 6, 3, groups=2), sharpness=1.0)
    kernel = {"weight": (6, 2, 3, 3), "bias": (6,)}
    positions = {"positional_key": (9, 3, 3), "positional_shift": (9, 2)}
    sharpness = {"positional_sharpness": (1,)}
    assert shapes(layer.named_parameters()) == kernel
    assert shapes(layer.named_buffers()) == positions | sharpness
    assert shapes(layer.state_dict().items()) == kernel | sharpness
    layer.unfreeze("content", "shifts", "sharpness", "value", "output")
    assert shapes(layer.named_parameters()) == positions | sharpness | {
        "query": (9, 4, 3),
        "key": (9, 4, 3),
        "content_bias": (9, 3),
        "value": (2, 2, 2, 9),
        "output": (2, 3, 2, 9),
        "bias": (6,),
    }
    assert not list(layer.buffers())
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    assert set(attention_from_conv(nn.Conv2d(4, 6, 3, bias=False)).state_dict()) == {"weight"}


def saved(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded(layer: MultiHeadSelfAttention) -> MultiHeadSelfAttention:
    """A layer of other numbers, after it has loaded those of the given one."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(saved(layer))
    return other


@EVERY_LAYER
@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), loaded],
    ids=["deepcopy", "pickle", "state_dict"],
)
def test_copy_computes_the_same_and_shares_nothing(
    make: Callable[[], MultiHeadSelfAttention],
    again: Callable[[MultiHeadSelfAttention], MultiHeadSelfAttention],
) -> None:
    layer = make()
    second = again(layer)
    y = layer(image())
    assert torch.equal(second(image()), y)
    assert repr(second) == repr(layer)
    assert second.sharpness == layer.sharpness
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(second(image()), y)


def test_state_of_a_saturated_layer_does_not_load_into_a_soft_one_nor_back() -> None:
    # Saturated is a rule, not a number: it has no entry, and loading says so.
    conv = nn.Conv1d(1, 1, 3)
    sharp, blurred = attention_from_conv(conv), attention_from_conv(conv, sharpness=2.0)
    with pytest.raises(RuntimeError, match=r"Missing key.*positional_sharpness"):
        blurred.load_state_dict(sharp.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*positional_sharpness"):
        sharp.load_state_dict(blurred.state_dict())
    blurred.load_state_dict(sharp.state_dict(), strict=False)
    assert blurred.sharpness == 2.0


# Moves --------------------------------------------------------------------------------------------

MOVES: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {
    "to(float16)": (lambda layer: layer.to(torch.float16), torch.float16),
    "half": (lambda layer: layer.half(), torch.float16),
    "to(cpu, bfloat16)": (lambda layer: layer.to("cpu", torch.bfloat16), torch.bfloat16),
    "bfloat16": (lambda layer: layer.bfloat16(), torch.bfloat16),
    "float": (lambda layer: layer.float(), torch.float32),
    "double": (lambda layer: layer.double(), torch.float64),
    "type(float64)": (lambda layer: layer.type(torch.float64), torch.float64),
    "half, then double": (lambda layer: layer.half().double(), torch.float64),
    "double, then bfloat16": (lambda layer: layer.double().bfloat16(), torch.bfloat16),
}
EVERY_MOVE = pytest.mark.parametrize(("move", "dtype"), MOVES.values(), ids=list(MOVES))


@EVERY_MOVE
def test_move_keeps_shifts_exact_and_saturated_weights_one_hot(
    move: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    conv = filled(nn.Conv1d(1, 1, 3, dilation=301))  # bfloat16 knows 300 and 302
    layer, x = move(attention_from_conv(conv)), integers(1, 610, dtype=dtype)
    assert layer.positional_shift.flatten().tolist() == [0, 301, 602]
    assert layer.sharpness == layer.normaliser.one_hot_gap(dtype)
    weights = layer.attention_weights((610,))
    assert weights.dtype == dtype
    for h, q in itertools.product(range(3), range(8)):
        assert weights[h, q].nonzero().tolist() == [[q + 301 * h]]
        assert weights[h, q, q + 301 * h] == 1
    assert torch.equal(layer(x), conv.to(dtype)(x))


@EVERY_MOVE
def test_move_keeps_the_scores(move: Callable[[Any], Any], dtype: torch.dtype) -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3, padding=1), sharpness=0.1)
    weights = layer.attention_weights((4, 5))
    moved = move(layer)
    assert moved.sharpness == 0.1
    if dtype != torch.float64:  # there scores and softmax run in float64
        assert torch.equal(moved.attention_weights((4, 5)), weights.to(dtype))


@EVERY_LAYER
def test_double_and_back_changes_no_bit(make: Callable[[], MultiHeadSelfAttention]) -> None:
    layer = make()
    back = copy.deepcopy(layer).double().float()
    assert back.state_dict().keys() == layer.state_dict().keys()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
        assert back.state_dict()[name].dtype == tensor.dtype


@pytest.mark.parametrize("sharpness", [None, 0.1], ids=str)
def test_double_of_the_layer_is_the_layer_of_the_double(sharpness: float | None) -> None:
    conv, x = filled(nn.Conv2d(4, 2, 3), 7), integers(1, 4, 5, 5, dtype=torch.float64) / 11
    moved = attention_from_conv(conv, sharpness=sharpness).double()
    made = attention_from_conv(conv.double(), sharpness=sharpness)
    assert torch.equal(moved(x), made(x))


@EVERY_MOVE
def test_move_leaves_gradients_of_their_parameters_dtype(
    move: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    layer = soft()
    layer(image()).sum().backward()
    for name, parameter in move(layer).named_parameters():
        if parameter.grad is not None:
            assert (name, parameter.grad.dtype) == (name, parameter.dtype)


def test_move_to_a_device_and_back_changes_no_bit(device: str) -> None:
    layer = soft()
    back = copy.deepcopy(layer).to(device).to("cpu")
    for name, tensor in layer.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


# Batches ------------------------------------------------------------------------------------------


@EVERY_LAYER
def test_image_is_treated_alike_alone_unbatched_and_in_a_batch(
    make: Callable[[], MultiHeadSelfAttention],
) -> None:
    layer = make().double()
    y = layer(image(torch.float64))
    for i, x in enumerate(image(torch.float64)):
        assert layer(x).shape == y.shape[1:]
        assert torch.equal(layer(x), layer(x[None])[0])
        if make in (saturated, transposed):  # sums of integers, in whatever order
            assert torch.equal(layer(x), y[i])
    assert layer(image(torch.float64)[:0]).shape == (0, *y.shape[1:])


def test_image_may_lie_in_memory_in_any_order() -> None:
    layer, x = saturated(), image()
    strided = x.mT.contiguous().mT
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided), layer(x))
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


# Gradients ----------------------------------------------------------------------------------------


@given(case=integer_cases(torch.float32))
def test_saturated_gradients_are_those_of_the_convolution_bit_for_bit(case: Case) -> None:
    # Numbers of 24 bits in float64: gradients, sums over all outputs, are exact as well.
    conv = case.conv.double()
    layer = attention_from_conv(conv)
    x, leaf = case.x.double().requires_grad_(), case.x.double().requires_grad_()
    expected = Case(conv, x, case.output_size).run(conv)
    cotangent = integers(*expected.shape, dtype=torch.float64)
    torch.autograd.backward(expected, cotangent)
    torch.autograd.backward(Case(conv, leaf, case.output_size).run(layer), cotangent)

    assert leaf.grad is not None
    assert x.grad is not None
    assert torch.equal(leaf.grad, x.grad)
    if conv.bias is not None:
        assert layer.bias is not None
        assert layer.bias.grad is not None
        assert conv.bias.grad is not None
        assert torch.equal(layer.bias.grad, conv.bias.grad)
    assert conv.weight.grad is not None
    assert torch.equal(layer.weight.grad, conv.weight.grad)


@DTYPES
def test_gradient_in_the_sharpness_is_zero_once_weights_are_one_hot(dtype: torch.dtype) -> None:
    layer = attention_from_conv(filled(nn.Conv2d(4, 2, 3)).to(dtype), sharpness=1000.0)
    layer.unfreeze("shifts", "sharpness")
    layer(image(dtype)).backward(integers(2, 2, 1, 2, dtype=dtype))
    for parameter in (layer.positional_sharpness, layer.positional_shift):
        assert parameter is not None
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() == 0


DIFFERENTIATED: dict[str, Convolution] = {
    "strided, in 1-D": nn.Conv1d(2, 1, 2, stride=2, padding=1),
    "grouped and replicated, in 2-D": nn.Conv2d(2, 4, (1, 2), groups=2, padding_mode="replicate"),
    "transposed": nn.ConvTranspose1d(1, 2, 2, stride=2),
}


@pytest.mark.parametrize("factors", [(), ("value", "output")], ids=["kernel", "two factors"])
@pytest.mark.parametrize("conv", DIFFERENTIATED.values(), ids=list(DIFFERENTIATED))
def test_gradient_is_the_derivative_in_every_parameter_and_the_input(
    conv: Convolution, factors: tuple[str, ...]
) -> None:
    """With the scores as weights, the layer is a polynomial of degree at most 4 in each variable.

    The five-point difference is then the derivative itself, and on integers it is exact: with
    h = 1, 12 f' = 8 (f(1) - f(-1)) - (f(2) - f(-2)).
    """
    conv = filled(copy.deepcopy(conv)).double()
    layer = enlivened(papers_layer(conv, normaliser=Scores(), sharpness=3.0))
    layer.unfreeze("content", "shifts", "sharpness", *factors)
    spatial = (3, 2)[: layer.geometry.dimension]
    x = integers(1, conv.in_channels, *spatial, dtype=torch.float64).requires_grad_()
    cotangent = integers(*layer(x).shape, dtype=torch.float64)
    layer(x).backward(cotangent)

    for name, variable in [("x", x), *layer.named_parameters()]:
        assert variable.grad is not None, name
        entries = variable.detach().view(-1)
        for i, derivative in enumerate(variable.grad.flatten().tolist()):
            values = []
            for step in (1, -2, -1, 4):  # at 1, -1, -2 and 2, one after the other
                entries[i] += step
                with torch.no_grad():
                    values.append((layer(x) * cotangent).sum().item())
            entries[i] -= 2
            at_1, at_minus_1, at_minus_2, at_2 = values
            assert 12 * derivative == 8 * (at_1 - at_minus_1) - (at_2 - at_minus_2), (name, i)


def test_gradient_of_softmax_at_equal_scores_is_the_exact_fraction() -> None:
    """With no positional key all T = 4 weights are 1/4, and dA_k = (ds_k - mean ds) / 4."""
    conv = filled(nn.Conv1d(1, 1, 2)).double()
    layer = attention_from_conv(conv, sharpness=3.0)
    layer.unfreeze("shifts")
    with torch.no_grad():
        layer.positional_key.zero_()
    x = integers(1, 4, dtype=torch.float64)
    cotangent = integers(1, 3, dtype=torch.float64)
    layer(x).backward(cotangent)
    assert layer.positional_key.grad is not None
    for h, p, j in itertools.product(range(2), repeat=3):
        v = (-3, 3 * 2 * h)
        derivative = Fraction(0)
        for q in range(3):
            in_score = [v[j] * ((k - q) ** (2 - p) - h ** (2 - p)) for k in range(4)]  # (δ², δ)
            mean = Fraction(sum(in_score), 4)
            seen = sum((s - mean) / 4 * int(x[0, k]) for k, s in enumerate(in_score))
            derivative += int(cotangent[0, q]) * int(conv.weight[0, 0, h]) * seen
        assert layer.positional_key.grad[h, p, j].item() == derivative


# Autocast -----------------------------------------------------------------------------------------


@DTYPES
def test_autocast_returns_what_it_returns_for_a_convolution(
    dtype: torch.dtype, device: str
) -> None:
    conv, x = filled(nn.Conv2d(4, 2, 3)).to(device, dtype), image(dtype).to(device)
    layer = attention_from_conv(conv)
    with torch.autocast(device, torch.bfloat16):
        assert layer(x).dtype == conv(x).dtype
        assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize("content", [False, True], ids=["positions", "content"])
def test_autocast_changes_no_score(content: bool, device: str) -> None:
    conv = nn.Conv2d(4, 2, 3, device=device)
    spy = Spy()
    layer = attention_from_conv(conv, normaliser=spy, sharpness=0.1)
    if content:
        enlivened(layer)
    layer(image().to(device))
    with torch.autocast(device, torch.bfloat16):
        layer(image().to(device))
    *_, outside, inside = spy.seen
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_autocast_changes_no_attention_weight(device: str) -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3, device=device), sharpness=0.1)
    weights = layer.attention_weights((4, 5))
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(layer.attention_weights((4, 5)), weights)


def test_autocast_takes_inputs_of_lower_dtypes_as_a_convolution_does(device: str) -> None:
    conv, x = filled(nn.Conv2d(4, 2, 3)).to(device), image(torch.bfloat16).to(device)
    layer = attention_from_conv(conv)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(layer(x), conv(x))
        with refused(ValueError, "x has dtype", "torch.float64", "torch.float32"):
            layer(x.double())


# Compilers ----------------------------------------------------------------------------------------


def compiled_layer_agrees(backend: str) -> None:
    """All four score terms, forward and backward; scores as weights keep integers integers."""
    conv = filled(nn.Conv2d(4, 2, 3, padding=1)).double()
    layer = enlivened(attention_from_conv(conv, normaliser=Scores(), sharpness=3.0))
    compiled = traced(copy.deepcopy(layer), backend)
    results = []
    for module in (layer, compiled):
        x = image(torch.float64).requires_grad_()
        y = module(x)
        y.backward(integers(*y.shape, dtype=torch.float64))
        gradients = [p.grad for p in module.parameters() if p.requires_grad]
        results.append([y, x.grad, *gradients])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def compiled_layer_takes_an_output_size(backend: str) -> None:
    conv = filled(nn.ConvTranspose2d(4, 3, 3, stride=2))
    compiled = traced(attention_from_conv(conv), backend)
    with torch.no_grad():
        assert torch.equal(compiled(image(), output_size=[8, 9]), conv(image(), [8, 9]))


def compiled_encodings_agree(backend: str) -> None:
    """Gaps are constants of the graph, and normalisers have no branches on values."""
    conv = filled(nn.Conv2d(4, 2, 3, padding=1)).requires_grad_(False)
    layer = attention_from_conv(conv, encoding="rotary", normaliser="entmax15", evaluation="dense")
    assert torch.equal(traced(layer, backend)(image()), conv(image()))


COMPILED = [compiled_layer_agrees, compiled_layer_takes_an_output_size, compiled_encodings_agree]
EACH = pytest.mark.parametrize("agrees", COMPILED)


@pytest.mark.parametrize(
    "agrees", [pytest.param(COMPILED[0], marks=pytest.mark.thorough), *COMPILED[1:]]
)
def test_layer_compiles_into_one_graph(agrees: Callable[[str], None]) -> None:
    agrees("aot_eager" if agrees is compiled_layer_agrees else "eager")  # the one with gradients


@EACH
@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_layer_compiles_with_inductor(agrees: Callable[[str], None]) -> None:
    agrees("inductor")


def test_exported_saved_and_loaded_layer_takes_batches_of_any_size() -> None:
    conv, file = filled(nn.Conv2d(4, 2, 3, padding=1, groups=2)), io.BytesIO()
    batch = ({0: torch.export.Dim("batch")},)
    layer = attention_from_conv(conv)
    torch.export.save(
        torch.export.export(layer, (image(),), dynamic_shapes=batch, strict=False), file
    )
    file.seek(0)
    module: Any = torch.export.load(file).module()
    for x in (image(), torch.cat([image(), image()])):
        assert torch.equal(module(x), conv(x))
