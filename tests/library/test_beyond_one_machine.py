"""Beyond one machine: heads, batches and rows over 2 and 4 processes are the single process.

On integers bit for bit, on real data within the certificate of one process. The page is
`docs/beyond-one-machine.md`; the processes are those of `tests/support/parallel.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from constructions import attention_from_conv, certify, convert
from constructions.certificate import Certificate
from constructions.formats import smallest_subnormal, unit_roundoff
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import parallel
from tests.support.helpers import edit_matrices, filled, integers, refused
from tests.support.ledger import record

HEADS = "heads_that_shift_sum_to_a_convolution"
ROWS = "attention_is_soft_padding_then_convolution"
CERTIFIED = "layer_error_is_certified"

IMPULSE = 1e38
RATE = 2.0**-8


class Case(NamedTuple):
    """A convolution, the options of its layer, and an input."""

    conv: Any
    options: Mapping[str, Any]
    x: Tensor

    @property
    def layer(self) -> MultiHeadSelfAttention:
        """The layer that computes the convolution."""
        layer: MultiHeadSelfAttention = attention_from_conv(self.conv, **self.options)
        return layer

    @property
    def in_factors(self) -> MultiHeadSelfAttention:
        """The same layer, W_val and W_out trained in place of the kernel."""
        return self.layer.unfreeze("value", "output")

    @property
    def gradient(self) -> Tensor:
        """Of the output: integers."""
        with torch.no_grad():
            y = self.conv(self.x)
        return integers(*y.shape, dtype=y.dtype)


def whole(conv: Any, *shape: int, **options: Any) -> Case:
    """A case of integers."""
    conv = filled(conv)
    return Case(conv, options, integers(*shape, dtype=conv.weight.dtype))


def real(conv: Any, *shape: int, **options: Any) -> Case:
    """A case of real numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(conv.weight.dtype)

    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(drawn(*parameter.shape))
    return Case(conv, options, drawn(*shape))


f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16

# 9 heads on 4 ranks are 3, 3, 3 and none.
WHOLE_HEADS = {
    "3 x 3": whole(nn.Conv2d(2, 3, 3, padding=1), 2, 2, 6, 5),
    "8 heads, dense": whole(nn.Conv2d(2, 3, (2, 4), padding=1), 2, 2, 4, 5, evaluation="dense"),
    "options": whole(
        nn.Conv2d(4, 4, (3, 2), (2, 1), 2, (1, 2), 2, padding_mode="replicate", dtype=f64),
        *(1, 4, 9, 6),
    ),
    "transposed": whole(nn.ConvTranspose1d(3, 2, 5, stride=2, padding=1, bias=False), 2, 3, 7),
    "unbatched volume": whole(nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular"), 1, 4, 3, 3),
}
REAL_HEADS = {
    f"{dtype}, sharpness {sharpness}, {evaluation}".removeprefix("torch."): real(
        nn.Conv2d(5, 3, (3, 4), padding=(1, 2), dtype=dtype),
        *(2, 5, 7, 6),
        sharpness=sharpness,
        evaluation=evaluation,
    )
    for dtype in (f32, f64)
    for sharpness in (None, 3.0, 0.5)
    for evaluation in ("factored", "dense")
}
# Channels enough for a product of matrices to be no gather; the head is chosen below.
ONE_HEAD = {
    f"head {head}": real(nn.Conv2d(3, 4, 3, padding=1), 1, 3, 5, 6, sharpness=1.5)
    for head in (0, 4, 8)
}
NETWORK = filled(
    nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, stride=2))
)
BATCH = integers(8, 2, 6, 6)

WHOLE_ROWS = {
    "3 x 3": whole(nn.Conv2d(2, 3, 3, padding=1), 2, 2, 16, 5),
    "replicate": whole(nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), 1, 2, 16, 5),
    "reflect": whole(nn.Conv2d(2, 3, 5, padding=2, padding_mode="reflect"), 1, 2, 16, 5),
    "no padding": whole(nn.Conv2d(2, 3, 3), 1, 2, 16, 5),
    "strided": whole(nn.Conv2d(2, 3, 3, 2, padding=1), 1, 2, 16, 7),
    "strided, dilated": whole(nn.Conv2d(2, 3, 3, 2, dilation=2, padding=2), 1, 2, 16, 7),
    "even": whole(nn.Conv2d(2, 3, 4, padding="same"), 1, 2, 16, 5),
    "wide padding": whole(nn.Conv2d(2, 3, 1, padding=2), 1, 2, 16, 5),
    "line": whole(nn.Conv1d(2, 3, 3, padding=1, dtype=f64), 1, 2, 16),
}
REAL_ROWS = {
    f"{dtype}, sharpness {sharpness}, {mode}".removeprefix("torch."): real(
        nn.Conv2d(3, 4, 3, stride, padding=1, padding_mode=mode, dtype=dtype),
        *(2, 3, 32, 5),
        sharpness=sharpness,
    )
    for mode in ("zeros", "replicate")
    for dtype, sharpness, stride in (
        (f32, 2.2, 1),
        (f32, 3.0, 2),
        (f64, 16.0, 1),
        (bf16, 3.0, 1),
        (f32, None, 1),
    )
} | {
    "dense": real(nn.Conv2d(2, 2, 3, padding=1), 1, 2, 32, 3, sharpness=2.2, evaluation="dense"),
}


def impulse() -> Case:
    """One huge pixel, at the end of the halo of the stripe that ends in the middle.

    It is at distance 10 from the last row of that stripe. There e^(-10² sharpness) is still a
    normal number, and at distance 11 it is 0.
    """
    conv = filled(nn.Conv1d(1, 1, 1, bias=False))
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 48)
    x[..., 33] = IMPULSE
    return Case(conv, {"sharpness": 0.86}, x)


def only(head: int, layer: MultiHeadSelfAttention) -> MultiHeadSelfAttention:
    """The layer with one head that counts, its sharpness trained."""
    others = torch.arange(layer.num_heads) != head
    edit_matrices(layer, lambda matrices: matrices.mul_(~others[:, None, None, None]))
    return layer.unfreeze("value", "output", "sharpness")


def jobs() -> dict[str, parallel.Job]:
    """All that the ranks are asked for, in one start of the processes."""

    def heads(case: Case, style: parallel.ShardHeads | None = None) -> parallel.Job:
        return parallel.job(
            parallel.sharded_heads,
            model=case.layer,
            x=case.x,
            gradient=case.gradient,
            style=style or parallel.ShardHeads(),
        )

    def rows(case: Case, missing: int = 0) -> parallel.Job:
        return parallel.job(parallel.sharded_rows, layer=case.layer, image=case.x, missing=missing)

    def data(model: nn.Module, x: Tensor, gradient: Tensor, steps: int) -> parallel.Job:
        return parallel.job(
            parallel.data_parallel, model=model, x=x, gradient=gradient, rate=RATE, steps=steps
        )

    asked = {f"heads: {name}": heads(case) for name, case in (WHOLE_HEADS | REAL_HEADS).items()}
    for name, case in ONE_HEAD.items():
        layer = only(int(name.split()[-1]), case.layer)
        asked[name] = parallel.job(
            parallel.sharded_heads,
            model=layer,
            x=case.x,
            gradient=case.gradient,
            style=parallel.ShardHeads(),
        )
    for name, style in WRONG_STYLES.items():
        asked[f"{name}, whole"] = heads(WHOLE_HEADS["3 x 3"], style)
        asked[f"{name}, real"] = heads(REAL_HEADS["float32, sharpness 3.0, factored"], style)
    network = convert(NETWORK)
    asked["network, heads"] = parallel.job(
        parallel.sharded_heads,
        model=network,
        x=BATCH,
        gradient=integers(*network(BATCH).shape),
        style=parallel.ShardHeads(),
    )
    asked["network, batch"] = data(network, BATCH, integers(*network(BATCH).shape), 1)
    case = averaged()
    asked["layer, batch"] = data(case.in_factors, case.x, case.gradient, 3)
    for name in SHARDED:
        asked[f"sharded: {name}"] = parallel.job(
            parallel.fully_sharded, model=sharded(name), x=BATCH, rate=RATE, steps=STEPS
        )
    asked |= {f"rows: {name}": rows(case) for name, case in (WHOLE_ROWS | REAL_ROWS).items()}
    asked |= {"impulse": rows(impulse()), "impulse, less": rows(impulse(), 1)}
    asked |= {f"less: {n}": rows(WHOLE_ROWS[n], 1) for n in ("3 x 3", "strided, dilated", "even")}
    return asked


SHARDED: Mapping[str, tuple[float | None, tuple[str, ...]]] = {
    "saturated": (None, ()),
    "of a sharpness": (3.0, ()),
    "the sharpness trained": (3.0, ("sharpness",)),
    "shifts trained": (3.0, ("shifts",)),
    "content trained": (3.0, ("content",)),
    "factors trained": (None, ("value", "output")),
}
"""Networks for FSDP2: the sharpness, and what is trained beside kernel and bias."""

STEPS = 3


def sharded(name: str) -> nn.Module:
    """A converted network for FSDP2."""
    sharpness, parts = SHARDED[name]
    network = convert(nn.Sequential(*NETWORK, nn.AvgPool2d(2)), sharpness=sharpness)
    for layer in network.modules():
        if isinstance(layer, MultiHeadSelfAttention) and layer.in_channels is not None:
            layer.unfreeze(*parts)
    return network


WRONG_STYLES: Mapping[str, parallel.ShardHeads] = {
    "bias on every rank": parallel.BiasOnEveryRank(),
    "the last rank's heads lost": parallel.LoseLastHeads(),
}


def averaged() -> Case:
    """A layer for DDP: real numbers, saturated."""
    return real(nn.Conv2d(3, 5, 3, padding=1), 8, 3, 6, 5)


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def ranks(request: pytest.FixtureRequest) -> Callable[[str], list[Any]]:
    """What each rank returned for a job, by its name."""
    asked = jobs()
    results = dict(zip(asked, parallel.on_ranks(request.param, list(asked.values())), strict=True))
    return results.__getitem__


def certificate(case: Case, y: Tensor) -> Certificate:
    """The certificate of the whole layer, held against what the ranks returned."""
    layer = case.layer
    layer.register_forward_hook(lambda *_: y)
    return certify(layer, case.conv, case.x)


def gradients(model: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Output and gradients in this process, named as `parallel.sharded_heads` names them."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    y = model(x)
    y.backward(gradient)
    of_parameters = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **of_parameters}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit, up to the sign of zero."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        record(dtype=tensor.dtype)


# Heads ------------------------------------------------------------------------------------------


@pytest.mark.evidence(HEADS, "exact")
@pytest.mark.parametrize("name", WHOLE_HEADS)
def test_heads_over_ranks_are_the_convolution_and_its_gradients_on_integers(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    case = WHOLE_HEADS[name]
    expected = gradients(case.in_factors, case.x, case.gradient)
    assert torch.equal(expected["y"], case.conv(case.x))
    for of_rank in ranks(f"heads: {name}"):
        assert_same(of_rank, expected)


@pytest.mark.evidence(HEADS, "exact")
def test_network_parallelised_layer_by_layer_is_the_network_on_integers(
    ranks: Callable[[str], list[Any]],
) -> None:
    network: Any = convert(NETWORK)
    for layer in (network[0], network[2]):
        layer.unfreeze("value", "output")
    expected = gradients(network, BATCH, integers(*network(BATCH).shape))
    assert torch.equal(expected["y"], NETWORK(BATCH))
    for of_rank in ranks("network, heads"):
        assert_same(of_rank, expected)


@pytest.mark.evidence(CERTIFIED, "property")
@pytest.mark.parametrize("name", REAL_HEADS)
def test_heads_over_ranks_are_within_the_certificate_of_one_process(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    first, *others = ranks(f"heads: {name}")
    held = certificate(REAL_HEADS[name], first["y"])
    record(ratio=held.ratio, dtype=first["y"].dtype)
    assert held.holds
    for other in others:
        assert torch.equal(other["y"], first["y"])


@pytest.mark.parametrize("name", ONE_HEAD)
def test_gradient_of_the_sharpness_is_summed_over_ranks(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    # The other heads add exact zeros, so that ranks and process add up the same numbers.
    case = ONE_HEAD[name]
    expected = gradients(only(int(name.split()[-1]), case.layer), case.x, case.gradient)
    assert expected["positional_sharpness"] != 0
    for of_rank in ranks(name):
        for of in ("y", "positional_sharpness", "x"):
            assert torch.equal(of_rank[of], expected[of]), of


@pytest.mark.evidence(HEADS, "control")
@pytest.mark.evidence(CERTIFIED, "control")
@pytest.mark.parametrize("name", WRONG_STYLES)
def test_wrong_styles_are_not_the_convolution(name: str, ranks: Callable[[str], list[Any]]) -> None:
    case = WHOLE_HEADS["3 x 3"]
    y = ranks(f"{name}, whole")[0]["y"]
    assert not torch.equal(y, case.conv(case.x))
    y = ranks(f"{name}, real")[0]["y"]
    assert not certificate(REAL_HEADS["float32, sharpness 3.0, factored"], y).holds


# Batches ----------------------------------------------------------------------------------------


def test_ddp_averages_the_gradients_of_the_process_bit_for_bit_on_integers(
    ranks: Callable[[str], list[Any]],
) -> None:
    network = convert(NETWORK)
    expected = gradients(network, BATCH, integers(*network(BATCH).shape))
    before = dict(network.named_parameters())
    results = ranks("network, batch")
    for of_rank in results:
        assert of_rank["gradients"].keys() == expected.keys() - {"x", "y"}
        for name, gradient in of_rank["gradients"].items():
            mean = expected[name] / len(results)
            assert torch.equal(gradient, mean), name
            assert torch.equal(of_rank["parameters"][name], before[name] - RATE * mean), name


def test_ddp_gradients_are_within_the_rounding_of_two_sums(
    ranks: Callable[[str], list[Any]],
) -> None:
    case = averaged()
    expected = gradients(case.in_factors, case.x, case.gradient)
    moduli = case.in_factors.double()
    with torch.no_grad():
        for parameter in moduli.parameters():
            if parameter.requires_grad:
                parameter.abs_()
    sizes = gradients(moduli, case.x.double().abs(), case.gradient.double().abs())
    results = ranks("layer, batch")
    # A monomial pixel x gradient x matrix entry passes two products, a sum over outputs, one over
    # channels and one over ranks; the quotient by 2 or 4 is exact.
    terms = case.gradient[:, 0].numel() + 5 + len(results) + 2
    # Their moduli, in float64, pass as many roundings themselves.
    of_moduli = math.expm1(terms * math.log1p(unit_roundoff(torch.float64)))
    relative = math.expm1(terms * math.log1p(unit_roundoff(f32))) * (1 + 2 * of_moduli)
    underflow = terms * smallest_subnormal(f32)
    for name, gradient in results[0]["gradients"].items():
        error = (gradient.double() * len(results) - expected[name].double()).abs()
        # Each of the two is so far from the exact gradient.
        bound = 2 * (relative * sizes[name] + underflow * len(results))
        assert (error <= bound).all(), name


def test_ddp_keeps_the_parameters_of_all_ranks_equal(
    ranks: Callable[[str], list[Any]],
) -> None:
    first, *others = (of_rank["parameters"] for of_rank in ranks("layer, batch"))
    before = dict(averaged().in_factors.named_parameters())
    assert any(not torch.equal(first[name], before[name]) for name in first)
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


# Parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARDED)
def test_steps_under_fsdp_are_those_of_one_process_bit_for_bit(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    network = sharded(name)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    parallel.descend(network, BATCH, RATE, STEPS)
    expected = {n: p.detach() for n, p in network.named_parameters()}
    still = {"0.query", "2.query", "0.key", "2.key"}  # of content that is zero, both are flat
    assert all(not torch.equal(before[n], p) for n, p in expected.items() if n not in still)
    for of_rank in ranks(f"sharded: {name}"):
        assert_same(of_rank, expected)


# Rows -------------------------------------------------------------------------------------------


@pytest.mark.evidence(ROWS, "exact")
@pytest.mark.parametrize("name", WHOLE_ROWS)
def test_rows_over_ranks_are_the_convolution_on_integers(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    case = WHOLE_ROWS[name]
    y = torch.cat(ranks(f"rows: {name}"), dim=2)
    record(dtype=y.dtype)
    assert torch.equal(y, case.conv(case.x))


@pytest.mark.evidence(ROWS, "property")
@pytest.mark.evidence(CERTIFIED, "property")
@pytest.mark.parametrize("name", REAL_ROWS)
def test_rows_over_ranks_are_within_the_certificate_of_one_process(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    y = torch.cat(ranks(f"rows: {name}"), dim=2)
    held = certificate(REAL_ROWS[name], y)
    record(ratio=held.ratio, dtype=y.dtype)
    assert held.holds


@pytest.mark.evidence(ROWS, "exact")
def test_halo_of_the_band_misses_no_weight(ranks: Callable[[str], list[Any]]) -> None:
    case = impulse()
    with torch.no_grad():
        expected = case.layer(case.x)
    assert parallel.halo(case.layer) == (10, 10)
    assert expected.count_nonzero() == 21
    y = torch.cat(ranks("impulse"), dim=2)
    record(dtype=y.dtype)
    assert torch.equal(y != 0, expected != 0)


@pytest.mark.evidence(ROWS, "control")
def test_halo_one_row_too_small_for_the_band_loses_a_weight(
    ranks: Callable[[str], list[Any]],
) -> None:
    case = impulse()
    with torch.no_grad():
        expected = case.layer(case.x)
    y = torch.cat(ranks("impulse, less"), dim=2)
    assert expected[0, 0, 23] > 1
    assert y[0, 0, 23] == 0


@pytest.mark.evidence(ROWS, "control")
@pytest.mark.parametrize("name", ["3 x 3", "strided, dilated", "even"])
def test_halo_one_row_too_small_for_the_kernel_is_not_the_convolution(
    name: str, ranks: Callable[[str], list[Any]]
) -> None:
    case = WHOLE_ROWS[name]
    y, expected = torch.cat(ranks(f"less: {name}"), dim=2), case.conv(case.x)
    assert y.shape != expected.shape or not torch.equal(y, expected)


@pytest.mark.evidence(ROWS, "exact")
@pytest.mark.parametrize("sharpness", [0.01, 0.86, 2.0, 12.9, 26.0, 103.0, 104.0])
def test_band_is_the_last_distance_above_the_threshold(sharpness: float) -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 1), sharpness=sharpness)
    width, gap = parallel.band(layer), layer.normaliser.one_hot_gap(f32)
    assert width**2 * layer.sharpness <= gap < (width + 1) ** 2 * layer.sharpness
    row = layer.attention_weights((2 * width + 5,))[0, width + 2]
    assert not row[:2].any()
    assert not row[-2:].any()


def test_halo_larger_than_a_neighbour_is_refused() -> None:
    nobody = cast(DeviceMesh, None)
    with refused(ValueError, "rows", "2", "at least 3"):
        parallel.with_halo(torch.zeros(1, 1, 2), 3, 1, nobody)
