"""Lowering: a positional layer as soft paddings and convolutions."""

from constructions.lowering.lower import lower
from constructions.lowering.lowered import Cost, Lowered

__all__ = ["Cost", "Lowered", "lower"]
