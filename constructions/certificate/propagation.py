"""From the layers to the output: what their errors do to a chain of modules, rigorously.

Numbers in brackets are equations on the page of `certificates_compose_by_telescoping`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TypeGuard

import torch
from torch import Tensor, nn

from constructions.certificate.certificate import Certificate
from constructions.certificate.comparison import Comparison
from constructions.certificate.equivalence import bound_of_others
from constructions.certificate.rounding import gamma
from constructions.certificate.stacks import layers_in
from constructions.conversion import Following
from constructions.formats import DOUBLE, OWN, smallest_normal
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import may_transform
from constructions.sources import CONVOLUTIONS, SOURCES, AnySource
from constructions.sources.convolutions import HOOKS

UNCHANGED = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""In evaluation, no two numbers are further apart after them than before, and nothing rounds."""

MOVED = (nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
"""Nor after these, where the difference goes as the numbers themselves do."""


def end_to_end(
    converted: nn.Module, original: nn.Module, x: Tensor, certificates: Sequence[Certificate]
) -> Tensor | None:
    """How far the outputs of two chains can be apart, element by element: (5) and (6).

    Args:
        converted: of which the attention layers are certified.
        original: in evaluation, as the converted one.
        x: what both are given.
        certificates: of each call of an attention layer, in their order; all hold.

    Returns:
        float64, of the output's shape; None where something stands in the chain, or a format or a
        device is used, of which nothing is said here.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, DOUBLE):
        return None
    if may_transform(len(x), x.dtype, x.device.type):
        return None
    given = iter(certificates)
    ours, theirs = x.clone(), x.clone()  # a module may work in place
    apart = torch.zeros(x.shape, dtype=DOUBLE)
    for new, old in _links(converted, original):
        step = _after(new, old, given, ours, theirs, apart)
        if step is None:
            return None
        assert new is not None
        assert old is not None
        apart, ours, theirs = step, new(ours), old(theirs)
    return apart


def _links(
    new: nn.Module | None, old: nn.Module | None
) -> Iterator[tuple[nn.Module | None, nn.Module | None]]:
    """The modules of two chains, one after another, each with that in its place."""
    if _is_chain(new) and _is_chain(old):
        for pair in zip_longest(new, old):
            yield from _links(*pair)
    else:
        yield new, old


def _is_chain(module: nn.Module | None) -> TypeGuard[nn.Sequential]:
    return type(module) is nn.Sequential and not _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    return any(getattr(module, kind) for kind in HOOKS)


def _after(
    new: nn.Module | None,
    old: nn.Module | None,
    certificates: Iterator[Certificate],
    ours: Tensor,
    theirs: Tensor,
    apart: Tensor,
) -> Tensor | None:
    """How far apart the outputs of two modules are; None where that is not known.

    Args:
        new: of the converted network.
        old: in its place in the original.
        certificates: of the layers to come.
        ours: what the one is given.
        theirs: what the other is given.
        apart: how far these are apart.
    """
    if new is None or old is None or _is_hooked(old) or _is_hooked(new):
        return None
    is_attention = isinstance(new, MultiHeadSelfAttention) or bool(layers_in(new))
    if is_attention and isinstance(old, SOURCES):
        own = next(certificates).bound
        return (own + _spread(old, apart) + _rounding(old, theirs)) * OWN
    if type(new) is not type(old) or isinstance(new, Following):
        return None
    if type(old) in CONVOLUTIONS or type(old) is nn.Linear:
        linear = old
        if not _is_the_same(new, linear):
            return None
        rounding = _rounding(linear, ours) + _rounding(linear, theirs)
        return (_spread(linear, apart) + rounding) * OWN
    if type(old) in UNCHANGED:
        return apart
    if type(old) in MOVED and repr(old) == repr(new):
        moved: Tensor = old(apart)
        return moved
    return None


def _is_the_same(new: nn.Module, old: nn.Module) -> bool:
    """Whether two modules of one class have the same numbers and options."""
    pairs = zip(new.state_dict().values(), old.state_dict().values(), strict=True)
    return repr(new) == repr(old) and all(torch.equal(a, b) for a, b in pairs)


def _spread(module: nn.Module, apart: Tensor) -> Tensor:
    """|W| of a difference, as the module has W, over the reals and rounded up: (5)."""
    moduli = copy.deepcopy(module).double()
    terms = 1
    if isinstance(module, SOURCES) and not isinstance(module, CONVOLUTIONS):
        terms = apart[0].numel()
    for name, parameter in moduli.named_parameters():
        parameter.data = parameter.data.abs() if name == "weight" else 0.0 * parameter.data
        terms = max(terms, parameter.numel())
    spread: Tensor = moduli(apart)
    # The sum of so many numbers of one sign, each product rounded, has not lost more.
    return spread * (1 + 2 * gamma(terms + 2, DOUBLE)) + terms * smallest_normal(DOUBLE)


def _rounding(module: nn.Module, x: Tensor) -> Tensor:
    """How far torch's own sums can be from those over the reals: (2) of T7."""
    if isinstance(module, nn.Linear):
        conv, rows = _as_convolution(module), x.reshape(-1, module.in_features, 1)
        return _rounding(conv, rows).reshape(*x.shape[:-1], module.out_features)
    assert isinstance(module, SOURCES)
    leak, rounding = bound_of_others(Comparison.of(module, x), x, 0.0)
    return leak + rounding


def _as_convolution(linear: nn.Linear) -> AnySource:
    """The same sums, with one tap."""
    conv = nn.Conv1d(1, 1, 1, bias=linear.bias is not None)
    conv.in_channels, conv.out_channels = linear.in_features, linear.out_features
    conv.weight = nn.Parameter(linear.weight.detach().unsqueeze(-1))
    if linear.bias is not None:
        conv.bias = nn.Parameter(linear.bias.detach())
    return conv
