"""What a layer knows of itself: its parts, and what follows from them and its parameters."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from constructions.encodings.sizes import traced_gap
from constructions.formats import accumulator, position_format
from constructions.geometry.geometry import Geometry
from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import PaddingMode
from constructions.geometry.view import Boundary, check_view
from constructions.heads import Heads
from constructions.layer import structure
from constructions.layer.gradients import PAGE, is_flat
from constructions.layer.parameters import CONTENT, PARTS, POSITIONS, HeadParameters
from constructions.normalisers import Normaliser
from constructions.sources.native import AnyNative
from constructions.tracing import constant_of_traced_code, has_values, is_traced, members

Own = TypeVar("Own", bound="AttentionState")

OutputSize = Sequence[int] | None
"""Of a transposed convolution, as torch takes it."""

MOST_SHAPES = 1024
"""Shapes of images that a layer remembers to have checked."""


class AttentionState(HeadParameters):
    """A layer's parts, and what follows: its sharpness and gap, its sink, what its heads share.

    Args:
        heads: where each looks, and what it applies.
        geometry: where pixels, keys and queries stand.
        border: what stands beyond the edge.
        boundary: whether that is made of keys.
        normaliser: scores to weights.
        sharpness: the gap in score, or None.
        bias: b_out, (D_out,), or None.
        native: the convolution or pooling that the heads express, or None.
    """

    def __init__(
        self,
        heads: Heads,
        *,
        geometry: Geometry,
        border: PaddingMode,
        boundary: Boundary,
        normaliser: Normaliser,
        sharpness: float | None = None,
        bias: Tensor | None = None,
        native: AnyNative | None = None,
    ) -> None:
        super().__init__(heads, sharpness, bias, native)
        self.geometry = geometry
        self.border = border
        self.boundary_rule = boundary
        self.normaliser = normaliser
        self._looked: structure.Version | None = None
        self._thresholds: dict[torch.dtype, tuple[tuple[object, ...], float]] = {}
        self._fitting: set[tuple[int, ...]] = set()
        self._shared = self._in_order = True
        self.shares_structure()
        for option in () if native is None else fields(native):
            setattr(self, option.name, getattr(native, option.name))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes: it has tensors of its own, to be looked at anew."""
        return self.__dict__ | {"_looked": None, "_thresholds": {}}

    @property
    def sharpness(self) -> float:
        """The gap in score between a head's shift and any other displacement, sink apart."""
        sharpness = self.sharpness_in(self.dtype)
        return sharpness.item() if isinstance(sharpness, Tensor) else sharpness

    @property
    def boundary(self) -> str:
        """How the border is made: "natural", by the heads themselves, or "padded", by keys."""
        return self.boundary_rule.name

    @property
    def sink_height(self) -> float | None:
        """How far the sink stands below a target, in units of the sharpness; None without one."""
        if self.normaliser.vanishes:
            return None
        return self.boundary_rule.sink(self.border, self.geometry)

    @property
    def has_sink(self) -> bool:
        """Whether the last key is a sink, of value zero and `sink_height` below a target."""
        return self.sink_height is not None

    def sharpness_in(self, dtype: torch.dtype) -> Tensor | float:
        """The sharpness for weights of a given dtype: the parameter, or what saturates them.

        A sink divides the gap between a target and what comes next.
        """
        own = self.positional_sharpness
        if own is not None:
            return own.reshape(()).to(position_format(own.device))
        return self._saturating_sharpness(dtype)

    def is_saturated(self, dtype: torch.dtype) -> bool:
        """Whether weights of a given dtype are exactly one-hot."""
        if not self.kind.takes_sharpness:
            return False
        if self.positional_sharpness is None:
            return True
        if not has_values(self.positional_sharpness):
            return False
        return self.positional_sharpness.item() >= self._saturating_sharpness(dtype)

    def _saturating_sharpness(self, dtype: torch.dtype) -> float:
        if is_traced():
            return self._threshold(dtype)
        parts = self.normaliser, self.encoding, self.boundary_rule, self.border, self.geometry
        kept = self._thresholds.get(dtype)
        if kept is not None and all(map(operator.is_, kept[0], parts)):
            return kept[1]
        self._thresholds[dtype] = parts, self._threshold(dtype)
        return self._thresholds[dtype][1]

    def _threshold(self, dtype: torch.dtype) -> float:
        # Most scores fall so fast that few keys are near the gap. Where all may be, half precision
        # is not enough to make the peak 1 (T8): then float32 has to be one-hot.
        gap = self.normaliser.one_hot_gap(accumulator(dtype) if self.encoding.crowded else dtype)
        height = self.sink_height
        if height is None:
            return gap
        part = min(height, 1 - height)  # of the gap, that is left on either side of the sink
        return gap / part if part > 0 else math.inf

    def unfreeze(self: Own, *parts: str) -> Own:
        """Make parts of the layer parameters; see `HeadParameters.unfreeze`.

        Warns of scores that become parameters and whose gradient is zero, bit for bit, since the
        layer is saturated: UserWarning, once for each layer and part. Theorem:
        `gradient_and_leak_are_one_number`.
        """
        still = [
            part
            for part in parts
            if set(names := PARTS.get(part, ())) <= {*POSITIONS, *CONTENT}
            and any(not isinstance(getattr(self, name), nn.Parameter) for name in names)
        ]
        untrained = bool(still) and self._has_flat_scores()
        super().unfreeze(*parts)
        if untrained:
            warnings.warn(
                f"{' and '.join(map(repr, still))} of a saturated layer: its weights are one-hot "
                "and locally constant, so the gradients are exactly zero and nothing is learnt; "
                f"give attention_from_conv a smaller sharpness, see {PAGE}",
                stacklevel=2,
            )
        return self

    def _has_flat_scores(self) -> bool:
        """Whether all heads look at their shifts alone, with weights of no derivative."""
        if self.numbers.is_meta or self.has_live_content() or not self.is_saturated(self.dtype):
            return False
        gap, sink, device = self.sharpness, self.sink_height, self.numbers.device
        return is_flat(self.normaliser, gap, sink, self.dtype, device)

    def shares_structure(self) -> bool:
        """Whether the heads differ in shift and matrices alone, their shifts on the kernel's grid.

        Looked at once for each version of the parameters, which an edit through `.data` does not
        change. Traced code takes the answer of the last call that was not traced.
        """
        self._look()
        return self._shared

    def is_in_order(self) -> bool:
        """Whether they do share it, and head h attends to tap h, as the construction has it."""
        self._look()
        return self._in_order

    def _look(self) -> None:
        if is_traced():
            return
        seen = self.structural()
        version = structure.version_of(seen)
        if not structure.is_same_version(version, self._looked):
            if not has_values(*(one for tensor in seen for one in members(tensor))):
                return
            shared = structure.are_shared(self.heads, self.geometry)
            self._shared = shared and not self.has_live_content()
            # Asked only then: what is trained may stand in pieces, on several processes.
            self._in_order = self._shared and structure.are_in_order(
                self.positional_shift, self.geometry
            )
            self._looked = version

    def gap(self, keys: Lattice) -> Tensor | float:
        """The gap of the heads' shifts on a lattice of keys, in units of the encoding.

        Raises:
            ValueError: the encoding cannot select the shifts there, or on all grids of an export.
        """
        if not is_traced():
            return self.encoding.gap(self.shifts(), keys)
        bound, constant = self.positional_sharpness is None, self._constant_gap
        return traced_gap(self.encoding, self.shifts(), keys, bound=bound, constant=constant)

    @constant_of_traced_code
    def _constant_gap(self, *keys: tuple[int, ...]) -> float:
        return self.encoding.gap(self.shifts(), Lattice(*keys))

    def output_padding_for(
        self, spatial_shape: tuple[int, ...], output_size: OutputSize
    ) -> tuple[int, ...]:
        """The output padding of an image's shape, which is checked once.

        Raises:
            ValueError: no output is left, no such output, or the border does not reach as far.
        """
        if output_size is None and spatial_shape in self._fitting:
            return self.geometry.output_padding
        geometry = self.sized(spatial_shape, output_size)
        check_view(geometry, self.border.name, spatial_shape)
        if output_size is None and len(self._fitting) < MOST_SHAPES:
            self._fitting.add(spatial_shape)
        return geometry.output_padding

    def sized(self, spatial_shape: tuple[int, ...], output_size: OutputSize = None) -> Geometry:
        """The geometry for an image and the output size that is asked for.

        Raises:
            ValueError: other numbers of axes, or no such output.
        """
        if len(spatial_shape) != self.geometry.dimension:
            raise ValueError(
                f"spatial_shape is {spatial_shape}; accepted: {self.geometry.dimension} sizes"
            )
        if output_size is None:
            return self.geometry
        return self.geometry.with_output_size(spatial_shape, output_size)
