"""Selecting heads: whose errors are signed, whose are bounded, and of whose nothing is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.certificate.comparison import Comparison
from constructions.certificate.selecting import selecting_errors
from constructions.encodings import EncodingLike, Quadratic
from constructions.geometry.lattice import Lattice
from tests.support.helpers import filled, integers, refused


@dataclass(frozen=True)
class Opaque:
    """The quadratic encoding, but that it does not say that its scores are sums over axes."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """As the quadratic encoding."""
        return Quadratic().encode(displacements, shifts, grid)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """As the quadratic encoding."""
        return Quadratic().gap(shifts, grid)

    @property
    def natural_borders(self) -> dict[str, EncodingLike | None]:
        """As the quadratic encoding."""
        return {"replicate": self}


def convolution(mode: Literal["zeros", "replicate"] = "zeros") -> nn.Conv1d:
    conv = nn.Conv1d(2, 3, 3, padding=1, padding_mode=mode)
    filled(conv)
    return conv


def test_saturated_heads_do_nothing_to_the_pixels() -> None:
    conv, x = convolution(), integers(2, 2, 7)
    errors = selecting_errors(Comparison.of(conv, x), attention_from_conv(conv))
    for part in (errors.deviation, errors.evaluated, errors.rounding):
        assert float(part) == 0.0


@pytest.mark.parametrize("boundary", ["natural", "padded"])
@pytest.mark.parametrize("sharpness", [0.5, 4.0, 12.0])
def test_scores_alone_bound_the_deviation_that_axes_give(boundary: str, sharpness: float) -> None:
    conv, x = convolution(), integers(2, 2, 7)
    comparison = Comparison.of(conv, x)
    signed, bounded = (
        selecting_errors(
            comparison,
            attention_from_conv(
                conv,
                encoding=encoding,
                boundary=boundary,
                sharpness=sharpness,
                evaluation="dense",
            ),
        )
        for encoding in (Quadratic(), Opaque())
    )
    assert (signed.signed, bounded.signed) == (True, False)
    assert (signed.deviation.abs() <= bounded.deviation + signed.evaluated).all()
    assert (signed.rounding <= bounded.rounding).all()


def test_natural_border_of_scores_that_are_no_known_sums_is_refused() -> None:
    conv, x = convolution("replicate"), integers(2, 2, 7)
    layer = attention_from_conv(conv, encoding=Opaque(), boundary="natural", sharpness=3.0)
    with refused(ValueError, "layer", "'replicate' of Opaque()", "a padded boundary"):
        certify(layer, conv, x)
    for boundary, sharpness in (("padded", 3.0), ("natural", None)):
        layer = attention_from_conv(conv, encoding=Opaque(), boundary=boundary, sharpness=sharpness)
        assert certify(layer, conv, x).holds


def test_heads_are_made_anew_and_not_read_from_the_layer() -> None:
    conv, x = convolution(), integers(2, 2, 7)
    comparison, layer = Comparison.of(conv, x), attention_from_conv(conv, sharpness=3.0)
    right = selecting_errors(comparison, layer)
    with torch.no_grad():
        layer.positional_shift.add_(1.0)
        layer.weight.zero_()
    wrong = selecting_errors(comparison, layer)
    assert torch.equal(wrong.deviation, right.deviation)
    assert not certify(layer, conv, x).holds
