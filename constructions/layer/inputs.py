"""Inputs: what a layer is asked, checked before anything is computed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from constructions.formats import accumulator, check_format
from constructions.geometry.geometry import checked_spatial_shape
from constructions.layer.scores import Choice


def called_by_tracer(layer: nn.Module, x: Proxy, output_size: object) -> Tensor:
    """A call of the layer in a graph of torch.fx, which does not look into it."""
    tracer: Any = x.tracer
    arguments = (x,) if output_size is None else (x, output_size)
    called: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(layer), arguments, {})
    return called


def check_image(x: Tensor, own: Tensor | None, channels: int | None, dimension: int) -> None:
    """Raise unless x is an image that a layer takes.

    Args:
        x: what is given.
        own: a parameter of the layer; None for one without, which takes any of the four formats.
        channels: of the image; None for any number.
        dimension: d.

    Raises:
        TypeError: x is not a tensor.
        ValueError: wrong rank, channels, dtype or device, or an empty grid.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; accepted: a torch.Tensor")
    checked_spatial_shape(x, channels, dimension)
    if own is None:
        check_format(x.dtype, "x")
        return
    if x.dtype != own.dtype:
        low = {torch.float16, torch.bfloat16, torch.float32}
        if not (is_autocast(x.device.type) and {x.dtype, own.dtype} <= low):
            raise ValueError(f"x has dtype {x.dtype}; accepted: {own.dtype}, the layer's")
    if x.device != own.device:
        raise ValueError(f"x is on {x.device}; accepted: {own.device}, the layer's device")


@contextlib.contextmanager
def without_autocast(own: torch.dtype, device_type: str) -> Iterator[torch.dtype]:
    """Switch autocast off; yields the dtype that it wants of a layer of a given one.

    As for a convolution of torch's, float64 is not its business.
    """
    if not is_autocast(device_type):
        yield own
        return
    wanted = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        yield own if own == torch.float64 else wanted


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on; the meta device has none."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def choice_of(
    queries: Sequence[int] | None,
    heads: Sequence[int] | None,
    all_queries: int,
    all_heads: int,
    device: torch.device,
) -> Choice:
    """A choice of queries and heads, by their numbers.

    Raises:
        TypeError: queries or heads are no sequence of integers.
        ValueError: a number of which there is none.
    """
    return Choice(
        _index("queries", queries, all_queries, device), _index("heads", heads, all_heads, device)
    )


def _index(
    argument: str, given: Sequence[int] | None, count: int, device: torch.device
) -> Tensor | None:
    if given is None:
        return None
    accepted = f"accepted: None, or integers from 0 to {count - 1}"
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{argument} is a {type(given).__name__}; {accepted}")
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in given):
        raise TypeError(f"{argument} is {given!r}; {accepted}")
    if not all(0 <= n < count for n in given):
        raise ValueError(f"{argument} is {tuple(given)}; {accepted}")
    return torch.tensor(tuple(given), dtype=torch.int64, device=device)


def check_weights_fit(count: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise a ValueError where so many attention weights exceed all memory that there is.

    Scores and softmax stand in the accumulator's format, and the weights in their own beside them.

    Args:
        count: weights.
        dtype: of the weights.
        device: on which they are computed.
    """
    needed = count * (2 * accumulator(dtype).itemsize + dtype.itemsize)
    there = memory(device)
    if there is not None and needed > there:
        raise ValueError(
            f"the attention weights asked for are {count:.3g} numbers and take {gigabytes(needed)} "
            f"to compute, {device} has {gigabytes(there)}; accepted: fewer, by queries= and "
            "heads=, or a smaller image"
        )


def memory(device: torch.device) -> int | None:
    """All bytes of a device's memory; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def gigabytes(size: int) -> str:
    """Bytes for a reader."""
    return f"{size / 2**30:.3g} GiB"
