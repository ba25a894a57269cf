"""Values are looked at where there are some: not in traced code, nor on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from constructions.tracing import (
    constant_of_traced_code,
    has_values,
    is_fixed,
    largest,
    tensor_of,
)

HERE, NOWHERE = torch.zeros(1), torch.zeros(1, device="meta")


@pytest.mark.parametrize("traced", [False, True])
def test_tensors_have_values_unless_one_is_on_the_meta_device(traced: bool) -> None:
    assert has_values(traced=traced)
    assert has_values(HERE, HERE, traced=traced)
    assert not has_values(NOWHERE, traced=traced)
    assert not has_values(HERE, NOWHERE, traced=traced)


def asked(traced: bool) -> float:
    """1 where a tensor of the caller's has values, else 2."""
    return 1.0 if has_values(torch.zeros(1), traced=traced) else 2.0


@constant_of_traced_code
def constant(traced: bool) -> float:
    """The same, as a constant."""
    return asked(traced)


class Asking(nn.Module):
    """Multiplies by what it is told, directly or as a constant."""

    def __init__(self, traced: bool, as_constant: bool) -> None:
        super().__init__()
        self.traced, self.as_constant = traced, as_constant

    def forward(self, x: Tensor) -> Tensor:
        factor = constant(self.traced) if self.as_constant else asked(self.traced)
        return x * factor


@pytest.mark.parametrize("as_constant", [False, True], ids=["in the trace", "as a constant"])
@pytest.mark.parametrize("traced", [False, True], ids=["values wanted", "traced will do"])
def test_traced_code_has_no_values_unless_the_caller_can_do_with_it(
    traced: bool, as_constant: bool
) -> None:
    module, x = Asking(traced, as_constant), torch.ones(2)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    exported = torch.export.export(module, (x,)).module()
    assert module(x).tolist() == [1, 1]
    for call in (compiled, exported):
        assert call(x).tolist() == ([1, 1] if traced else [2, 2])


def test_a_constant_is_computed_while_it_is_traced() -> None:
    calls: list[bool] = []

    @constant_of_traced_code
    def counted() -> float:
        calls.append(torch.compiler.is_compiling())
        return 3.0

    torch.compiler.reset()
    compiled = torch.compile(lambda x: x * counted(), backend="eager", fullgraph=True)
    assert [compiled(torch.ones(1)).item() for _ in range(3)] == [3, 3, 3]
    assert calls == [True]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 2**40])
def test_a_number_is_its_own_largest(size: int) -> None:
    assert largest(size) == size
    assert is_fixed(size)


class Sizes(nn.Module):
    """Adds what is known of the sizes of its input, and the sizes themselves."""

    def forward(self, x: Tensor) -> Tensor:
        known = [largest(n) or 0 for n in x.shape] + [int(is_fixed(n)) for n in x.shape]
        return x.new_tensor(known) + tensor_of(x.shape, x).sum()


@pytest.mark.parametrize("strict", [True, False])
def test_largest_size_is_the_max_of_its_dim(strict: bool) -> None:
    sizes = (Dim("rows", max=37), Dim.DYNAMIC, None)
    exported = torch.export.export(
        Sizes(), (torch.zeros(3, 4, 5),), dynamic_shapes=(sizes,), strict=strict
    ).module()
    for shape in ((3, 4, 5), (37, 2, 5)):
        expected = torch.tensor([37.0, 0, 5, 0, 0, 1]) + sum(shape)
        assert torch.equal(exported(torch.zeros(shape)), expected)
