"""Stacks: several layers for one convolution, their bounds composed.

The layers are made anew from the convolution, so that a wrong stack is judged by the right one.
Each is bounded on what it really receives, and what it may err by is carried through the moduli of
the layers after it. Numbers in brackets are equations on the page of `depth_buys_heads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from constructions.certificate.comparison import Comparison
from constructions.certificate.rounding import gamma
from constructions.formats import DOUBLE, OWN, smallest_subnormal
from constructions.geometry.view import PADDED, View
from constructions.heads.stacked import Plan, plan, planned
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import AnySource, Stencil, stencil_of

Bound = Callable[[Comparison, MultiHeadSelfAttention, torch.dtype], tuple[Tensor, Tensor]]
"""Leak and rounding of one layer."""


def layers_in(stack: nn.Module) -> tuple[MultiHeadSelfAttention, ...]:
    """The layers of a sequence of attention layers and of nothing else; none of another module."""
    if not isinstance(stack, nn.Sequential):
        return ()
    layers = tuple(part for part in stack if isinstance(part, MultiHeadSelfAttention))
    return layers if len(layers) == len(stack) else ()


@dataclass(frozen=True)
class Stack:
    """Layers, and what `attention_from_conv` makes them of.

    Args:
        layers: as they are.
        plan: which of them takes which steps.
        parts: the stencil that each expresses.
    """

    layers: tuple[MultiHeadSelfAttention, ...]
    plan: Plan
    parts: tuple[Stencil, ...]

    @classmethod
    def of(cls, module: nn.Module, conv: AnySource) -> Stack | None:
        """The module as a stack for a convolution; None if none is made so."""
        layers = layers_in(module)
        stencil = stencil_of(conv)
        for boundary in ("auto", "padded") if len(layers) > 1 else ():
            try:
                found = plan(stencil, len(layers), boundary)
            except ValueError:
                continue
            if found.geometries != tuple(layer.geometry for layer in layers):
                continue
            parts = planned(stencil, found)
            if all(
                (part.in_channels, part.out_channels, part.groups)
                == (layer.in_channels, layer.out_channels, layer.groups)
                for part, layer in zip(parts, layers, strict=True)
            ):
                return cls(layers, found, parts)
        return None


def stack_bound(
    comparison: Comparison,
    stack: Stack,
    x: Tensor,
    bound_of: Bound,
) -> tuple[Tensor, Tensor]:
    """How far the layers, one after another, can be from the convolution: (12) to (14).

    Args:
        comparison: the convolution and the input.
        stack: the layers.
        x: the input.
        bound_of: the bound of one layer.

    Returns:
        leak and rounding, of the output's shape. What the stored factors differ from the
        convolution by is counted as rounding.
    """
    leak = rounding = torch.zeros((), dtype=DOUBLE)
    images = x.reshape(-1, *x.shape[-1 - comparison.geometry.dimension :])
    for number, (layer, part) in enumerate(zip(stack.layers, stack.parts, strict=True)):
        own = comparison_of(part, images)
        if number:  # (12)
            leak, rounding = (carried(own, error) for error in (leak, rounding))
        first, second = bound_of(own, layer, x.dtype)
        leak, rounding = leak + first, rounding + second
        with torch.no_grad():
            # What is not finite has an infinite bound already, or comes of a wrong layer.
            images = layer(images).nan_to_num(0.0, 0.0, 0.0)
    stencil, exact = comparison.stencil, comparison.exact
    away = residual_of(stack.plan, stack.parts, stencil)
    groups, channels, outputs = away.shape
    terms = len(stencil.matrices) * channels
    largest = comparison.view.image.abs().flatten(2).amax(dim=-1)
    rest = largest.reshape(-1, groups, 1, channels) @ away  # (13)
    magnitude = replace(stencil, matrices=stencil.matrices.abs())
    plain = magnitude.convolve(comparison.limit.abs())
    shape = (groups * outputs, *(1 for _ in plain.shape[2:]))
    if stencil.bias is not None:
        plain = plain + stencil.bias.abs().reshape(shape)
    plain = plain * gamma(terms + 1, DOUBLE) + terms * smallest_subnormal(DOUBLE)  # (14)
    rounding = (rounding + plain + rest.reshape(len(plain), *shape)) * OWN
    return leak.reshape(exact.shape), rounding.reshape(exact.shape)


def comparison_of(stencil: Stencil, x: Tensor) -> Comparison:
    """A stencil of any kind, an input and the truth, in float64 on the CPU."""
    wide = stencil.to("cpu", DOUBLE)
    image = x.detach().cpu().double()
    view = View.of(image, wide.geometry, wide.border, PADDED)
    limit = view.at_targets
    exact = wide.convolve(limit)
    if wide.bias is not None:
        exact = exact + wide.bias.reshape(-1, *(1 for _ in exact.shape[2:]))
    return Comparison(wide, wide.geometry, exact, view, limit, None)


def carried(comparison: Comparison, error: Tensor) -> Tensor:
    """What errors of the input become: Σ |W| of them, continued beyond the edge as the input is."""
    stencil = comparison.stencil
    if not bool(error.any()):  # a saturated layer leaks nothing
        return torch.zeros_like(comparison.exact)
    view = View.of(error, comparison.geometry, stencil.border, PADDED)
    magnitude = replace(stencil, matrices=stencil.matrices.abs())
    taps, _, channels, _ = stencil.matrices.shape
    terms = taps * channels
    sums = magnitude.convolve(view.at_targets)
    sums = sums * (1 + 2 * gamma(terms + 2, DOUBLE)) + terms * smallest_subnormal(DOUBLE)
    infinite = float("inf")
    return sums.nan_to_num(infinite, infinite)  # inf times a weight of 0


def residual_of(found: Plan, parts: Sequence[Stencil], stencil: Stencil) -> Tensor:
    """Σ |what the layers apply on a way - what the convolution does|, over all ways: (13).

    The ways that are taps of the convolution have its matrices, all others none. Rounded up; (G,
    D_in / G, D_out / G).
    """
    wide = [part.matrices.to("cpu", DOUBLE) for part in parts]
    wanted = found.spread(stencil.matrices.to("cpu", DOUBLE)).flatten(0, len(parts) - 1)
    away = (multiplied(wide) - wanted).abs()
    terms = sum(part.shape[2] + 1 for part in wide[1:]) + 2
    moduli = multiplied([part.abs() for part in wide])
    lost = gamma(terms, DOUBLE) * (moduli + away) + terms * smallest_subnormal(DOUBLE)
    total: Tensor = (away + lost).sum(dim=0) * (1 + 2 * gamma(len(away) + 2, DOUBLE))
    return total


def multiplied(parts: Sequence[Tensor]) -> Tensor:
    """The products along every way through the layers, (ways, G, D_in / G, D_out / G)."""
    products = parts[0]
    for part in parts[1:]:
        products = (products.unsqueeze(1) @ part.unsqueeze(0)).flatten(0, 1)
    return products
