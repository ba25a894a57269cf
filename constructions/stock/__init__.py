"""Convolutions on layers that nobody here wrote: the module's own class, our parameters.

Each function takes a convolution and the size of its images, and returns a `Stock`, which is called
as the convolution is. A library is imported when its function is first asked for.
"""

from __future__ import annotations

import importlib

from constructions.stock.stock import Stock

_WHERE: dict[str, str] = {"on_tokens": "tokens"}
"""The module of each function."""

__all__ = ["Stock", *_WHERE]


def __getattr__(name: str) -> object:
    """A function of `_WHERE`, imported with its library when it is first asked for."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"constructions.stock.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'constructions.stock' has no attribute {name!r}")
