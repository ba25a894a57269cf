"""timm's GPSA as it initialises itself: a convolution for 9 heads, none for 4 and 16.

T19, `docs/theorems/gated_heads_start_as_convolution_for_odd_sides.md`. `local_init` sets values and
centres; the gate and the locality strength are opened by hand where the test says so.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.helpers import integers
from tests.support.ledger import record
from tests.support.libraries import imported
from tests.support.oracle import convolve_module, exact_error, numbers

SLUG = "gated_heads_start_as_convolution_for_odd_sides"
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

SIDE = 7


def started(heads: int, *, locality: float = 1.0, gate: float | None = None, dim: int = 0) -> Any:
    """A GPSA that has initialised itself, in float64, its content attention uniform."""
    kind = imported("timm.models.convit").GPSA
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind(dim or heads, heads, locality_strength=locality)
    module.local_init()
    with torch.no_grad():
        module.qk.weight.zero_()
        if gate is not None:
            module.gating_param.fill_(gate)
    return module.double().eval()


def attention(module: Any, side: int = SIDE) -> Tensor:
    """The weights of every head, (heads, queries, keys)."""
    tokens = torch.zeros(1, side * side, module.dim, dtype=torch.float64)
    with torch.no_grad():
        module(tokens)  # which computes the positions
        found: Tensor = module.get_attention(tokens)[0]
    return found


@exact
@pytest.mark.parametrize(("heads", "most"), [(1, 1.0), (4, 0.25), (9, 1.0), (16, 0.25), (25, 1.0)])
def test_head_looks_at_one_pixel_for_an_odd_side_and_at_four_for_an_even_one(
    heads: int, most: float
) -> None:
    middle = SIDE * SIDE // 2
    weights = attention(started(heads, locality=1024.0, gate=1024.0))[:, middle]
    assert torch.equal(weights.amax(dim=1), torch.full((heads,), most, dtype=torch.float64))
    assert torch.equal((weights > 0).sum(dim=1), torch.full((heads,), round(1 / most)))
    record(dtype=torch.float64)


@exact
def test_nine_heads_start_as_a_convolution_with_replicate_borders() -> None:
    # Each reads its own block of channels, the values being the identity: T19, equation (3).
    module = started(9, locality=1024.0, gate=1024.0, dim=18)
    with torch.no_grad():
        module.proj.weight.copy_(integers(18, 18))
        module.proj.bias.copy_(integers(18))
    conv = nn.Conv2d(18, 18, 3, padding=1, padding_mode="replicate", dtype=torch.float64)
    with torch.no_grad():
        conv.weight.zero_()
        for head in range(9):
            block = slice(2 * head, 2 * head + 2)
            dx, dy = (module.pos_proj.weight[head, :2] / 2048).long().tolist()
            conv.weight[:, block, dy + 1, dx + 1] = module.proj.weight[:, block]
        assert conv.bias is not None
        conv.bias.copy_(module.proj.bias)
    x = integers(2, 18, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        y = module(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 18, 5, 5)
    assert not exact_error(numbers(y), convolve_module(conv, x)).any()
    offsets = {tuple(row) for row in (module.pos_proj.weight[:, :2] / 2048).tolist()}
    assert offsets == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    record(dtype=torch.float64)


@exact
@pytest.mark.parametrize("heads", [4, 16])
def test_even_heads_do_not_see_stripes(heads: int) -> None:
    weights = attention(started(heads, locality=1024.0, gate=1024.0))
    stripes = torch.tensor([(-1.0) ** row for row in range(SIDE) for _ in range(SIDE)]).double()
    middle = SIDE * SIDE // 2
    assert not (weights[:, middle] @ stripes).any()
    assert not (weights[:, middle] @ stripes.view(SIDE, SIDE).T.flatten()).any()
    assert (attention(started(9, locality=1024.0, gate=1024.0))[:, middle] @ stripes).all()


@bounded
def test_target_of_a_shipped_layer_has_less_than_a_quarter_of_its_attention() -> None:
    # Equation (5), on a grid so large that its border is out of reach.
    module = started(9)
    assert module.gating_param.tolist() == [1.0] * 9
    assert module.locality_strength == 1.0
    side = 21
    found = attention(module, side)[:, side * side // 2].amax(dim=1)
    content = (1 - torch.tensor(1.0).double().sigmoid()) / side**2
    share = found - content
    assert (share > 0.232).all()
    assert (share < 0.233).all()


@control
def test_tenth_head_has_no_centre() -> None:
    module = started(10, locality=1024.0, gate=1024.0)
    assert (module.pos_proj.weight[:9].abs() >= 1024).any(dim=1).all()
    assert (module.pos_proj.weight[9].abs() < 1024).all()


@control
@pytest.mark.parametrize("heads", [4, 16])
def test_integer_centres_repair_an_even_side(heads: int) -> None:
    module = started(heads, locality=1024.0, gate=1024.0)
    with torch.no_grad():
        module.pos_proj.weight[:, :2] += 1024.0  # half a pixel, twice the locality
    middle = SIDE * SIDE // 2
    weights = attention(module)[:, middle]
    assert torch.equal(weights.amax(dim=1), torch.ones(heads, dtype=torch.float64))
    assert len(set(weights.argmax(dim=1).tolist())) == heads


@control
@pytest.mark.parametrize(("gate", "rest"), [(37.0, 0), (36.0, SIDE * SIDE - 1)])
def test_gate_is_open_from_37_in_float64(gate: float, rest: int) -> None:
    weights = attention(started(9, locality=1024.0, gate=gate))[:, SIDE * SIDE // 2]
    assert ((weights > 0).sum(dim=1) == 1 + rest).all()
