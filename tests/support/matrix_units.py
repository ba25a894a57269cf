"""A matrix unit in software: what a GPU's is known to do to float32 products, on any CPU.

Operands are cut to few bits; sums of several products and of the sum so far are aligned to the
largest of them, cut there, added exactly and cut again (PeerJ CS 7:e330, arXiv:2512.07004). It
works in float64, in which all this is exact, and takes the place of torch's own float32 products
while it is entered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from constructions.matrix_units import PRECISION

SUM_BITS = 24
LEAST = -149
"""The exponent of the smallest positive float32."""

Rounding = Callable[[Tensor], Tensor]


def half_away(numbers: Tensor) -> Tensor:
    """To the nearest integer, ties away from zero, as `cvt.rna` does."""
    return torch.trunc(numbers + torch.copysign(torch.full_like(numbers, 0.5), numbers))


ROUNDINGS: dict[str, Rounding] = {
    "toward zero": torch.trunc,
    "down": torch.floor,
    "up": torch.ceil,
    "to nearest": half_away,
}


@dataclass(frozen=True)
class Unit:
    """How one unit forms sums of products.

    Args:
        precision: bits that are left of an operand.
        blocks: how many products are added at once, again and again.
        operands: how operands are rounded.
        sums: how what is added is cut, and what comes of it.
        backwards: whether the last product comes first.
        flushes: whether subnormal operands are zero.
    """

    precision: int = 11
    blocks: tuple[int, ...] = (4,)
    operands: str = "toward zero"
    sums: str = "toward zero"
    backwards: bool = False
    flushes: bool = False

    def operand(self, numbers: Tensor) -> Tensor:
        """What enters a product: float64, of few bits."""
        wide = numbers.double()
        if self.flushes:
            wide = wide.masked_fill(wide.abs() < 2.0**-126, 0.0)
        return _cut(wide, self.precision, ROUNDINGS[self.operands], least=-126)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b of (B, M, K) and (B, K, N), in the numbers of float32."""
        a, b = self.operand(a), self.operand(b)
        terms = a.unsqueeze(-1) * b.unsqueeze(1)  # (B, M, K, N), exact
        if self.backwards:
            terms = terms.flip(2)
        total = terms.new_zeros(*terms.shape[:2], 1, terms.shape[3])
        start, blocks = 0, cycle(self.blocks)
        while start < terms.shape[2]:
            block = terms[:, :, start : (start := start + next(blocks))]
            total = self._added(torch.cat([total, block], dim=2))
        return total.squeeze(2).float()

    def _added(self, addends: Tensor) -> Tensor:
        rounding = ROUNDINGS[self.sums]
        largest = addends.abs().amax(dim=2, keepdim=True)
        grid = _grid(largest, SUM_BITS)
        total = (rounding(addends / grid) * grid).sum(dim=2, keepdim=True)
        return _cut(total, SUM_BITS, rounding)


def _grid(numbers: Tensor, bits: int, least: int = LEAST + SUM_BITS - 1) -> Tensor:
    """The distance of neighbours, in each number's binade, among numbers of so many bits."""
    exponent = torch.frexp(numbers).exponent - 1
    exponent = torch.where(numbers == 0, least, exponent).clamp(min=least)
    return torch.ldexp(torch.ones_like(numbers), exponent - (bits - 1))


def _cut(
    numbers: Tensor, bits: int, rounding: Rounding, least: int = LEAST + SUM_BITS - 1
) -> Tensor:
    grid = _grid(numbers, bits, least)
    return rounding(numbers / grid) * grid


class OnUnit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, products of float32 matrices and float32 convolutions run on the unit."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit = unit
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take the place of the operators that have a unit."""
        aten = torch.ops.aten
        tensors = [a for a in args if isinstance(a, Tensor)]
        if tensors and all(t.dtype == torch.float32 for t in tensors):
            done: Tensor | None = None
            if func is aten.mm.default:
                done = self.unit.product(args[0].unsqueeze(0), args[1].unsqueeze(0)).squeeze(0)
            elif func is aten.bmm.default:
                done = self.unit.product(args[0], args[1])
            elif func is aten.convolution.default:
                done = self._transposed(*args) if args[6] else self._convolution(*args)
            if done is not None:
                self.calls += 1
                return done
        return func(*args, **(kwargs or {}))

    def _transposed(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        """The convolution of the zero-stuffed image, its kernel reversed and its channels swapped.

        Zeros between the pixels round nothing, wherever a unit cuts its sums.
        """
        size, axes = weight.shape[2:], range(2, x.dim())
        sides: list[int] = []
        for axis, s, k, d, p, more in zip(
            axes, stride, size, dilation, padding, output_padding, strict=True
        ):
            stuffed = x.new_zeros(
                *x.shape[:axis], (x.shape[axis] - 1) * s + 1, *x.shape[axis + 1 :]
            )
            stuffed.index_copy_(axis, torch.arange(0, stuffed.shape[axis], s), x)
            x, reach = stuffed, d * (k - 1) - p
            sides = [reach, reach + more, *sides]
        blocks = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
        kernel = blocks.reshape(-1, weight.shape[0] // groups, *size).flip(tuple(axes))
        one, none = [1] * len(size), [0] * len(size)
        x = F.pad(x, sides)
        return self._convolution(x, kernel, bias, one, none, dilation, False, none, groups)

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        patches = F.pad(x, [p for side in reversed(padding) for p in (side, side)])
        size = weight.shape[2:]
        for axis, (k, s, d) in enumerate(zip(size, stride, dilation, strict=True)):
            patches = patches.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
        # (N, C, *out, *size) to (groups, N * outputs, C / groups * taps)
        batch, channels, *rest = patches.shape
        out, taps, width = rest[: len(size)], math.prod(size), channels // groups
        count = math.prod(out)
        rows = patches.reshape(batch, groups, width, count, taps).permute(1, 0, 3, 2, 4)
        columns = weight.reshape(groups, len(weight) // groups, width * taps).transpose(1, 2)
        y = self.unit.product(rows.reshape(groups, batch * count, width * taps), columns)
        y = y.reshape(groups, batch, count, columns.shape[2]).permute(1, 0, 3, 2)
        y = y.reshape(batch, len(weight), *out)
        return y if bias is None else y + bias.reshape(-1, *(1 for _ in size))


def units(precision: int = 11) -> st.SearchStrategy[Unit]:
    """Units of a precision, with sums in every way that is known, and some that are not."""
    return st.builds(
        Unit,
        precision=st.just(precision),
        blocks=st.lists(st.integers(1, 16), min_size=1, max_size=3).map(tuple),
        operands=st.sampled_from(sorted(ROUNDINGS)),
        sums=st.sampled_from(sorted(ROUNDINGS)),
        backwards=st.booleans(),
        flushes=st.booleans(),
    )


@contextmanager
def flagged(value: str, *flags: tuple[Any, str]) -> Iterator[None]:
    """torch's `fp32_precision` of operations, as of (torch.backends.cudnn, "conv"), at a value."""
    settings = [getattr(backend, operation) for backend, operation in flags]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = value
        yield
    finally:
        for setting, old in zip(settings, before, strict=True):
            setting.fp32_precision = old


def allowed(name: str) -> AbstractContextManager[None]:
    """Let torch round the operands of float32 products on this CPU, of which few can.

    The flags are torch's, and the certificate believes them.
    """
    assert name in PRECISION
    onednn = torch.backends.mkldnn
    return flagged(name, (onednn, "matmul"), (onednn, "conv"))
