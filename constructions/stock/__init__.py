"""Convolutions on layers that nobody here wrote: the module's own class, our parameters.

Each function takes a convolution and the size of its images, and returns a `Stock`, which is called
as the convolution is. A library is imported when its function is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from constructions.stock.stock import Stock

_WHERE: dict[str, str] = {
    "OnTokens": "tokens",
    "beit": "beit_attention",
    "decoder_layer": "transformer",
    "encoder": "transformer",
    "encoder_layer": "transformer",
    "gpsa": "gpsa_attention",
    "gpt_oss": "gpt_oss_attention",
    "llama": "llama_attention",
    "multihead_attention": "multihead",
    "on_tokens": "tokens",
    "stand_alone": "stand_alone_attention",
    "swin": "swin_attention",
    "t5": "t5_attention",
    "vit": "vit_attention",
}
"""The module of each function, under another name: a submodule takes the place of its namesake."""

__all__ = ["Stock", *_WHERE]


def __getattr__(name: str) -> Any:
    """A function of `_WHERE`, imported with its library when it is first asked for."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"constructions.stock.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'constructions.stock' has no attribute {name!r}")
