"""Attention layers that express convolutions, exactly or within a certified error."""

from constructions import certificate, encodings, heads, normalisers
from constructions.certificate import Certificate, assert_equivalent, certify
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

__all__ = [
    "Certificate",
    "Cost",
    "Encoding",
    "Following",
    "Heads",
    "Lowered",
    "MultiHeadSelfAttention",
    "Normaliser",
    "Report",
    "SoftPadding",
    "Stencil",
    "View",
    "assert_equivalent",
    "attention_from_conv",
    "certificate",
    "certify",
    "convert",
    "encodings",
    "heads",
    "lower",
    "normalisers",
    "revert",
]


def __getattr__(name: str) -> object:
    """`constructions.plotting`, imported when it is first asked for: it needs the extra `plot`."""
    if name == "plotting":
        import importlib

        return importlib.import_module("constructions.plotting")
    raise AttributeError(f"module 'constructions' has no attribute {name!r}")
