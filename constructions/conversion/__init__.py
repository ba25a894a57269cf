"""From convolutions to attention: one layer, and a whole network."""

from __future__ import annotations

from constructions.conversion.construction import attention_from_conv
from constructions.conversion.following import Following
from constructions.conversion.networks import convert
from constructions.conversion.report import Report

__all__ = ["Following", "Report", "attention_from_conv", "convert"]
