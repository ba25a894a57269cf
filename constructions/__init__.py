"""Attention layers that express convolutions, exactly or within a certified error."""

from constructions.certificate import assert_equivalent, certify
from constructions.conversion import attention_from_conv, convert
from constructions.lowering import lower

__all__ = ["assert_equivalent", "attention_from_conv", "certify", "convert", "lower"]
