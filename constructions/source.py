"""Sources: the modules of torch that attention can take the place of."""

from __future__ import annotations

import torch
from torch import nn

from constructions.pooling import POOLINGS, AnyPooling, stencil_of_pooling
from constructions.stencil import CONVOLUTIONS, AnyConvolution, Stencil, check_convolution

AnySource = AnyConvolution | AnyPooling
SOURCES = CONVOLUTIONS + POOLINGS


def check_convertible(source: nn.Module) -> None:
    """Raise a TypeError or ValueError unless the module computes just what its class says."""
    if isinstance(source, POOLINGS):
        stencil_of_pooling(source, torch.float32)
    elif isinstance(source, CONVOLUTIONS):
        check_convolution(source)
    else:
        raise TypeError(
            f"conv is a {type(source).__name__}; accepted: "
            + ", ".join(f"nn.{kind.__name__}" for kind in SOURCES)
        )


def canonical(source: AnySource, dtype: torch.dtype) -> Stencil:
    """The stencil of a convolution, in its own dtype, or of a pooling, in the given one."""
    if isinstance(source, POOLINGS):
        return stencil_of_pooling(source, dtype)
    return Stencil.from_conv(source)
