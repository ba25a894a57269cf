"""Sources: the modules of torch that attention can take the place of, each read as a stencil."""

from __future__ import annotations

from torch import nn

from constructions.sources.convolutions import (
    CONVOLUTIONS,
    AnyConvolution,
    stencil_of_convolution,
)
from constructions.sources.poolings import POOLINGS, AnyPooling, stencil_of_pooling
from constructions.sources.stencil import Stencil

__all__ = [
    "CONVOLUTIONS",
    "POOLINGS",
    "SOURCES",
    "AnyConvolution",
    "AnyPooling",
    "AnySource",
    "Stencil",
    "stencil_of",
]

AnySource = AnyConvolution | AnyPooling
SOURCES = CONVOLUTIONS + POOLINGS


def stencil_of(source: AnySource) -> Stencil:
    """Check a module and read it: a convolution in its own dtype, a pooling in float64.

    The tensors are detached and share no memory with the module.

    Raises:
        TypeError: the source is no convolution or average pooling of torch's own, or computes
            anything else.
        ValueError: its dtype is none of the four formats, or an option is one that torch refuses.
    """
    if isinstance(source, POOLINGS):
        return stencil_of_pooling(source)
    if isinstance(source, CONVOLUTIONS):
        return stencil_of_convolution(source)
    given: nn.Module = source
    raise TypeError(
        f"conv is a {type(given).__name__}; accepted: "
        + ", ".join(f"nn.{kind.__name__}" for kind in SOURCES)
    )
