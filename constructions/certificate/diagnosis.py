"""Diagnoses: of a layer that is not the convolution, where it fails and what it computes instead.

A wrong construction is named only if every output of the layer is within that construction's own
bound. Where that is so of several, they are told together: the input does not tell them apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constructions.certificate.comparison import Comparison
from constructions.certificate.head_errors import HeadErrors
from constructions.certificate.softened import Bound, fitted, softenings
from constructions.certificate.wrong import Wrong, wrong_as_a_whole, wrong_in_single_heads
from constructions.layer.attention import MultiHeadSelfAttention

SLACK = 4.0
"""How many times the bound of the right construction a wrong one is looked for within."""

WholeBound = Callable[[Comparison], tuple[Tensor, Tensor]]
"""Leak and rounding of a layer, of whatever convolution it is to be."""

SHOWN = 4
"""Wrong constructions that are named of those that an input does not tell apart."""


def where(failing: Tensor, comparison: Comparison) -> str:
    """Which outputs fail: how many, and what they have in common.

    Args:
        failing: of the shape of the output, batched: (N, D_out, *queries.shape).
        comparison: the convolution and its input.
    """
    total, count = failing.numel(), int(failing.sum())
    if count == total:
        return f"all {total} outputs fail"
    told = [f"{count} of {total} outputs fail", *_border(failing, comparison)]
    told += _alone(failing.flatten(1).any(1), "image")
    channels, groups = failing.transpose(0, 1).flatten(1).any(1), comparison.stencil.groups
    if comparison.window is None and groups > 1:
        told += _alone(channels.reshape(groups, -1).any(1), "group")
    told += _alone(channels, "output channel")
    if comparison.window is None:
        told += _phase(failing, comparison)
    return ", ".join(told)


def _alone(failing: Tensor, what: str) -> list[str]:
    """Which one of several."""
    if len(failing) < 2 or failing.sum() != 1:
        return []
    return [f"all of them in {what} {int(failing.nonzero())} (of 0 to {len(failing) - 1})"]


def _border(failing: Tensor, comparison: Comparison) -> list[str]:
    """Whether all fail, or none, where the kernel reaches beyond the image."""
    if comparison.window is not None:
        return []
    geometry, view = comparison.geometry, comparison.view
    inside = torch.ones(view.queries.shape, dtype=torch.bool)
    offsets = geometry.offsets("cpu")
    for axis, query in enumerate(view.queries.axes()):
        low, high = query + offsets[:, axis].min(), query + offsets[:, axis].max()
        within = (low >= 0) & (high <= view.pixels.last[axis])
        inside &= within.reshape([-1 if a == axis else 1 for a in range(inside.dim())])
    if inside.all() or not inside.any():
        return []
    beyond = int((~inside).sum()) * len(failing) * failing.shape[1]
    if not failing[..., inside].any():
        reach = "where the kernel reaches beyond the image"
        return [f"all of them at the border, {reach} ({beyond} outputs)"]
    return [] if failing[..., ~inside].any() else ["none of them at the border"]


def _phase(failing: Tensor, comparison: Comparison) -> list[str]:
    """Whether all fail at one phase of a transposed convolution's stride."""
    spacing = comparison.geometry.pixel_spacing
    found: list[str] = []
    strided = [axis for axis, s in enumerate(spacing) if s > 1]
    if not strided:
        return []
    at = failing.flatten(0, 1).any(0)
    phases = []
    for axis in strided:
        others = tuple(a for a in range(at.dim()) if a != axis)
        line = at.any(dim=others) if others else at
        there = {int(i) % spacing[axis] for i in line.nonzero().flatten()}
        if len(there) != 1 or len(line) < 2:
            found.append("*")
        else:
            found.append(str(there.pop()))
        phases.append(str(spacing[axis]))
    if set(found) == {"*"}:
        return []
    return [f"all of them at phase ({', '.join(found)}) of the stride ({', '.join(phases)})"]


@dataclass(frozen=True)
class Suspect:
    """A layer that failed, and how one like it is bounded.

    Args:
        layer: if it is an attention layer of this package.
        dtype: of its output.
        y: its output, (N, D_out, *queries.shape), float64.
        by_heads: leak and rounding by what its heads do.
        bound: the largest finite bound of the right construction.
    """

    layer: MultiHeadSelfAttention | None
    dtype: torch.dtype
    y: Tensor
    by_heads: Bound
    bound: float

    def named(self, comparison: Comparison, bounds: WholeBound) -> list[list[str]]:
        """The wrong constructions that all outputs agree with; names of one that is one, together.

        Args:
            comparison: the convolution and its input, not of a pooling.
            bounds: leak and rounding of a layer like this one, of another convolution.
        """
        found: list[tuple[list[str], Tensor]] = []
        for name, exact in self._agreeing(comparison, bounds):
            same = next((names for names, other in found if torch.equal(other, exact)), None)
            if same is None:
                found.append(([name], exact))
            else:
                same.append(name)
        return [names for names, _ in found]

    def _agreeing(self, comparison: Comparison, bounds: WholeBound) -> Iterator[tuple[str, Tensor]]:
        """Names and outputs of the wrong constructions that all outputs agree with."""
        image = comparison.view.image
        error = (self.y - comparison.exact.reshape(self.y.shape)).abs().flatten(1).amax(1)
        one = slice(worst := int(error.argmax()), worst + 1)
        shape = tuple(comparison.view.pixels.shape)
        for wrong in wrong_as_a_whole(comparison.stencil, shape):
            with contextlib.suppress(ValueError):  # a border that does not reach so far
                off = (self.y[one] - wrong.on(image[one]).exact).abs().max()
                if off <= SLACK * self.bound:
                    yield from self._held(wrong, image, bounds)
        for wrong in wrong_in_single_heads(comparison, self.y, SLACK * self.bound):
            yield from self._held(wrong, image, bounds)
        yield from self._soft(comparison, one)

    def _held(
        self, wrong: Wrong, image: Tensor, bounds: WholeBound
    ) -> Iterator[tuple[str, Tensor]]:
        """The wrong construction, if all outputs are within its bound."""
        with contextlib.suppress(ValueError):  # heads that this border has not
            other = wrong.on(image)
            leak, rounding = bounds(other)
            if self._within(other.exact, leak + rounding):
                yield wrong.name, other.exact

    def _soft(self, comparison: Comparison, one: slice) -> Iterator[tuple[str, Tensor]]:
        """Soft heads, their sharpness found on one image and held against all."""
        bias: Tensor | float = 0.0
        if comparison.stencil.bias is not None:
            bias = comparison.stencil.bias.reshape(-1, *(1 for _ in self.y.shape[2:]))
        view = replace(comparison.view, image=comparison.view.image[one])
        part = replace(
            comparison,
            view=view,
            limit=comparison.limit[one],
            exact=comparison.exact.reshape(self.y.shape)[one],
        )
        # Soft heads see means of pixels, border and sink: they err by no more than a leak of 1.
        spread = comparison.spread(has_sink=True)
        anything = HeadErrors(spread, False, spread.new_zeros(()), spread.new_zeros(()))
        if not self._within(comparison.exact, self._sum(comparison, anything)):
            return
        for heads in softenings(comparison, self.layer, self.dtype):
            with contextlib.suppress(ValueError):
                numbers = fitted(heads, part, self.y[one] - bias)
                exact = heads.output(comparison, numbers) + bias
                rounding = heads.rounding(comparison, numbers, exact, self.by_heads)
                # Saturated, they are not weak: pixels without a sink, say, are another border.
                twice = heads.output(comparison, tuple(2 * n for n in numbers)) + bias
                if self.layer is None and self._within(twice, rounding):
                    continue
                if self._within(exact, rounding):
                    yield f"weak sharpness, as of a gap of {numbers[0]:.3g} in score", exact
                    return

    def _sum(self, comparison: Comparison, heads: HeadErrors) -> Tensor:
        leak, rounding = self.by_heads(comparison, heads)
        return leak + rounding

    def _within(self, exact: Tensor, bound: Tensor) -> bool:
        error = (self.y - exact.reshape(self.y.shape)).abs()
        bound = bound.reshape(self.y.shape)
        return bool((error <= bound).all() and bound.isfinite().all())


def told(named: Sequence[Sequence[str]]) -> str:
    """What `Suspect.named` found, as a sentence."""
    names = [", which is here also ".join(same) for same in named]
    if not names:
        return "It agrees with none of the wrong constructions that are known by name."
    if len(names) == 1:
        return f"It agrees, within that construction's own bound, with: {names[0]}."
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        "This input does not tell which it is, but it agrees, within the bound of each, with: "
        f"{'; '.join(names[:SHOWN])}{more}."
    )
