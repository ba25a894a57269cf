"""The way to torch's own call that a layer has gone before, gone again without asking."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from constructions.layer.inputs import is_autocast
from constructions.layer.parameters import HeadParameters
from constructions.matrix_units import IMAGES_TRANSFORMED
from constructions.sources.native import NativeConvolution

POSITIONS = ("positional_key", "positional_shift", "positional_sharpness")
"""The buffers that decide, where the layer stores its kernel, whether it is the convolution."""

MOST_INPUTS = 64
"""Shapes, with dtype and device, that a shortcut knows; then it forgets them all."""


class Shortcut:
    """Torch's convolution, for images like those that it was the layer's answer to before.

    What a layer asks on its way there has the same answers while nothing changes that they are read
    from: the positions, that no content term is stored, the image's shape, dtype and device, and
    what torch is about to do (autocast, tracing). That alone is looked at. In small networks the
    questions would cost more than the convolution.

    Args:
        native: the call.
        groups: of the layer.
        positions: the layer's buffers.
    """

    def __init__(
        self, native: NativeConvolution, groups: int, positions: Mapping[str, Tensor | None]
    ) -> None:
        self._native = native
        self._groups = groups
        self._positions = [
            (name, tensor, 0 if tensor is None else tensor._version)
            for name, tensor in positions.items()
        ]
        self._inputs: set[tuple[torch.Size, torch.dtype, torch.device]] = set()

    @classmethod
    def of(cls, layer: HeadParameters) -> Shortcut | None:
        """The shortcut of a layer; None where nothing would tell that it no longer holds."""
        native, buffers = layer.native, layer._buffers
        if not isinstance(native, NativeConvolution) or not all(n in buffers for n in POSITIONS):
            return None
        positions = {name: buffers[name] for name in POSITIONS}
        stored = [tensor for tensor in positions.values() if tensor is not None]
        if any(tensor.is_inference() or tensor.requires_grad for tensor in stored):
            return None
        return cls(native, layer.groups, positions)

    def learn(self, x: Tensor) -> None:
        """Know that the convolution was the answer to an image."""
        if len(self._inputs) >= MOST_INPUTS:
            self._inputs.clear()
        self._inputs.add((x.shape, x.dtype, x.device))

    def holds(self, layer: HeadParameters) -> bool:
        """Whether the layer's positions are those that it was made for, and no content has come."""
        buffers = layer._buffers
        for name, tensor, version in self._positions:
            if buffers.get(name, self) is not tensor:
                return False
            if tensor is not None and (tensor._version != version or tensor.requires_grad):
                return False
        stored = layer._parameters
        return stored["query"] is stored["key"] is stored["content_bias"] is None

    def __call__(self, layer: HeadParameters, x: Tensor) -> Tensor | None:
        """The convolution of an image, or None where that has to be asked again."""
        if type(x) is not Tensor or (x.shape, x.dtype, x.device) not in self._inputs:
            return None
        stored = layer._parameters
        weight = stored.get("weight")
        if (
            weight is None
            or weight.dtype != x.dtype
            or weight.device != x.device
            or "bias" not in stored
            or is_autocast(x.device.type)
            or not self.holds(layer)
        ):
            return None
        bias = stored["bias"]
        if len(x) < IMAGES_TRANSFORMED:  # a plain sum, whatever torch's flags
            return self._native.as_torch_does(weight, bias, self._groups, None, x)
        return self._native(x, weight, bias, self._groups)
