"""Attention layers that express convolutions, exactly or within a certified error."""

from constructions import certificate, encodings, heads, normalisers
from constructions.certificate import (
    Certificate,
    NetworkCertificate,
    assert_equivalent,
    certify,
    certify_layers,
)
from constructions.conversion import Following, Report, attention_from_conv, convert
from constructions.encodings import Encoding
from constructions.geometry.view import View
from constructions.heads import Heads
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.soft_padding import SoftPadding
from constructions.lowering import Cost, Lowered, lower
from constructions.normalisers import Normaliser
from constructions.reversion import revert
from constructions.sources import Stencil
from constructions.stock.stock import Stock

__all__ = [
    "Certificate",
    "Cost",
    "Encoding",
    "Following",
    "Heads",
    "Lowered",
    "MultiHeadSelfAttention",
    "NetworkCertificate",
    "Normaliser",
    "Report",
    "SoftPadding",
    "Stencil",
    "Stock",
    "View",
    "assert_equivalent",
    "attention_from_conv",
    "certificate",
    "certify",
    "certify_layers",
    "convert",
    "encodings",
    "heads",
    "lower",
    "normalisers",
    "revert",
]


_LAZY = ("filters", "plotting", "stock")
"""Doors imported when they are first asked for: they need other packages, or few need them."""


def __getattr__(name: str) -> object:
    """A door of `_LAZY`, imported when it is first asked for."""
    if name in _LAZY:
        import importlib

        return importlib.import_module(f"constructions.{name}")
    raise AttributeError(f"module 'constructions' has no attribute {name!r}")
