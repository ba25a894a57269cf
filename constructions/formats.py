"""Floating-point formats: the numbers that every bound and threshold is made of."""

from __future__ import annotations

import torch

FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

DOUBLE = torch.float64
"""The format in which bounds are computed."""

OWN = 1 + 2**-30
"""Covers what a bound that is itself computed in float64, from terms of one sign, has lost."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next larger number, 2^-p for p significant bits."""
    return torch.finfo(dtype).eps / 2


def smallest_normal(dtype: torch.dtype) -> float:
    """The smallest positive number of full precision."""
    return torch.finfo(dtype).smallest_normal


def smallest_subnormal(dtype: torch.dtype) -> float:
    """η: the smallest positive number; half of it and less rounds to zero."""
    return smallest_normal(dtype) * torch.finfo(dtype).eps


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The format in which scores, softmax and sums of a layer of the given format run.

    Position scores in less than float32 would merge neighbouring pixels (bfloat16 tells integers
    apart to 256 only), and long sums in less than float32 lose all digits.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_format(dtype: torch.dtype, argument: str) -> None:
    """Raise a ValueError unless the format is one that the bounds cover."""
    if dtype not in FORMATS:
        accepted = ", ".join(str(f).removeprefix("torch.") for f in FORMATS)
        raise ValueError(f"{argument} has dtype {dtype}; accepted: {accepted}")


def position_format(device: torch.device | str | None) -> torch.dtype:
    """float64, in which integers are exact to 2^53, except where the device has none."""
    on_mps = device is not None and str(device).startswith("mps")
    return torch.float32 if on_mps else torch.float64
