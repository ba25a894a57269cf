"""What tests of several files share: exact data, reading a refusal, a compiled layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import AnyConvolution
from constructions.sources.native import NativeConvolution

__all__ = [
    "Scores",
    "edit_matrices",
    "enlivened",
    "filled",
    "integers",
    "papers_layer",
    "refused",
    "sunk",
    "traced",
]

Module = TypeVar("Module", bound=nn.Module)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of integers from -3 to 3, with no symmetry that a flip or a swap would keep."""
    n = torch.arange(math.prod(shape))
    return ((n**3 + 2 * n**2 + 3) % 13 % 7 - 3).reshape(shape).to(dtype)


def filled(module: Module, denominator: int = 1) -> Module:
    """The module with integer parameters, on which sums are exact in any order, or fractions."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(integers(*parameter.shape) / denominator)
    return module


def papers_layer(conv: AnyConvolution, **options: Any) -> MultiHeadSelfAttention:
    """The paper's own prescription: explicitly padded keys, and every weight computed."""
    return attention_from_conv(conv, **{"boundary": "padded", "evaluation": "dense"} | options)


def enlivened(layer: MultiHeadSelfAttention) -> MultiHeadSelfAttention:
    """The layer with content terms of integers, and positional keys other than the identity."""
    layer.unfreeze("content")
    with torch.no_grad():
        for name in ("query", "key", "content_bias", "positional_key"):
            parameter = getattr(layer, name)
            parameter.copy_(integers(*parameter.shape).roll(1))
    return layer


def edit_matrices(layer: MultiHeadSelfAttention, edit: Callable[[Tensor], object]) -> None:
    """Edit the matrix of each head, (H, G, D_in / G, D_out / G), in place; the kernel keeps it."""
    assert isinstance(layer.native, NativeConvolution)
    with torch.no_grad():
        value, output = layer.head_matrices()
        matrices = value @ output  # one of the two is the identity
        edit(matrices)
        layer.weight.copy_(layer.native.weight_of(matrices))


def sunk(layer: MultiHeadSelfAttention, height: float) -> MultiHeadSelfAttention:
    """The layer with its sink at another height, at the sharpness that it has."""
    if layer.positional_sharpness is None:
        layer.positional_sharpness = torch.tensor([layer.sharpness], dtype=torch.float64)
    layer.boundary_rule = replace(layer.boundary_rule, sink_height=height)
    return layer


@dataclass(frozen=True)
class Scores:
    """A normaliser that shows the scores themselves, as the weights."""

    def __call__(self, scores: Tensor) -> Tensor:
        """The scores."""
        return scores

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """They are never one-hot."""
        return math.inf


@contextmanager
def refused(kind: type[Exception], argument: str, given: str, accepted: str) -> Iterator[None]:
    """Expect an exception of just this kind that tells all a caller needs.

    Its message begins with the argument, has what was given, and says what is accepted.
    """
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    told, word, _ = message.partition("accepted: ")
    assert caught.type is kind
    assert message.startswith(argument), message
    assert given in told, message
    assert word, message
    assert accepted in message[len(told) :], message


def traced(module: nn.Module, backend: str = "eager") -> Any:
    """The module compiled, whole; not counted with what tests before it compiled."""
    torch.compiler.reset()
    return torch.compile(module, backend=backend, fullgraph=True)
