"""Numbers as a page shows them: three digits, rounded to nearest, or down or up where it claims so.

A lower bound that is rounded to nearest may be shown above itself.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

__all__ = ["DOWN", "NEAREST", "UP", "number", "power"]

DOWN, NEAREST, UP = ROUND_FLOOR, ROUND_HALF_EVEN, ROUND_CEILING

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _digits(value: float, digits: int, rounding: str) -> Decimal:
    """The stored number, exactly, rounded once to so many significant digits."""
    exact = Decimal(value)
    return exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding)


def number(value: float, rounding: str = NEAREST) -> str:
    """Three significant digits; whole thousands are written out."""
    whole = Decimal(value).quantize(Decimal(1), rounding)
    if whole >= 1000:
        return f"{whole:,}"
    shown = _digits(value, 3, rounding)
    return f"{shown.normalize():f}"


def power(value: float, rounding: str = NEAREST) -> str:
    """Two digits and a power of ten, from a hundred thousand on."""
    if Decimal(value).quantize(Decimal(1), rounding) < 100_000:
        return number(value, rounding)
    shown = _digits(value, 2, rounding)
    mantissa = shown.scaleb(-shown.adjusted())
    return f"{mantissa:.1f} · 10{str(shown.adjusted()).translate(SUPERSCRIPTS)}"
