"""Layers that follow a module: its weight as it computes it at each call, and its padding.

A module whose weight is made from other parameters, by normalisation, standardisation or a mask,
keeps them, and the layer reads what it makes of them; one that pads its image in a way of its own
pads it, and the layer has no border but that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from constructions.heads import factors_of
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.parameters import FACTORS
from constructions.layer.structure import as_stored
from constructions.sources import AnySource
from constructions.sources.native import NativeConvolution


@dataclass(frozen=True)
class Live:
    """What of a module has to be asked at each call.

    Args:
        weight: as torch stores one; None where it is the layer's own.
        bias: likewise.
        pad: the padded image, from what the module is called with; None where it is not padded.
    """

    weight: Callable[[], Tensor] | None = None
    bias: Callable[[], Tensor | None] | None = None
    pad: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Recognised:
    """What a module computes: a plain convolution or pooling, of an image that it may pad.

    Args:
        plain: a module of torch's own, of the weight and the bias as they are now.
        live: what has to be asked at each call; None if nothing.
    """

    plain: AnySource
    live: Live | None = None


Recogniser = Callable[[nn.Module], Recognised]
"""What tells of a module what it computes; asked again of each copy of the module."""


def followed(layer: MultiHeadSelfAttention, weight: Tensor) -> dict[str, Tensor]:
    """The parameters with which a layer applies the weight of a convolution; gradients flow."""
    if layer.stores_kernel:
        return {"weight": weight}
    native = layer.native
    assert isinstance(native, NativeConvolution)
    factors = factors_of(native.taps_of(weight, layer.groups), layer.geometry, layer.encoding)
    named = zip(FACTORS, factors, strict=True)
    return {name: as_stored(matrices) for name, matrices in named if matrices is not None}


class Following(nn.Module):
    """An attention layer in the place of a module whose weight or padding it follows.

    It has the state_dict of the module, key by key, whose parameters are the ones that are trained,
    and answers for attributes, such as `stride` and `weight`, as the module does.

    Args:
        layer: made from what is recognised in the source; its own weight is not used any more.
        source: the module that computes the weight, and knows how to pad.
        recognise: what it computes, told from the module itself.

    Attributes:
        layer: the attention layer. What it applies is given to it at each call, and not stored
            twice; see `current`.
        source: the module.
    """

    layer: MultiHeadSelfAttention
    source: nn.Module

    def __init__(
        self, layer: MultiHeadSelfAttention, source: nn.Module, recognise: Recogniser
    ) -> None:
        super().__init__()
        self.layer, self.source = layer, source
        self._recognise = recognise
        self._live = recognise(source).live or Live()
        names = []
        if self._live.weight is not None:
            names = [n for n in ("weight", *FACTORS) if layer._parameters.get(n) is not None]
        if self._live.bias is not None and layer.bias is not None:
            names.append("bias")
        for name in names:
            number = layer.get_parameter(name)
            delattr(layer, name)
            layer.register_buffer(name, _shape_of(number), persistent=False)
        self._given = names
        self.train(source.training)
        registering: Any = self  # torch has no types for it
        registering.register_state_dict_post_hook(_with_keys_of_the_source)
        registering.register_load_state_dict_pre_hook(_with_keys_of_the_parts)

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Tensor:
        """Apply the layer, with the weight as it is now, to the image as the module pads it.

        Args:
            input: (N, D_in, *spatial) or (D_in, *spatial).
            args: what else the module takes.
            options: likewise, by name.

        Raises:
            ValueError: as the layer, or as the module where it pads.
        """
        if self._live.pad is not None:
            input, args, options = self._live.pad(input, *args, **options), (), {}
        out: Tensor = functional_call(self.layer, self._numbers(), (input, *args), options)
        return out

    def current(self) -> MultiHeadSelfAttention:
        """A copy of the layer with the weight of now, as buffers: to look at, and to certify."""
        layer = copy.deepcopy(self.layer)
        for name, number in self._numbers().items():
            setattr(layer, name, number.detach().clone())
        return layer

    def plain_of(self, module: nn.Module) -> AnySource:
        """What another module of the source's kind computes now, of the image as it pads it."""
        return self._recognise(module).plain

    def _numbers(self) -> dict[str, Tensor]:
        weight, bias = self._live.weight, self._live.bias
        numbers = {} if weight is None else followed(self.layer, weight())
        own = None if bias is None else bias()  # after the weight: hooks make both
        if own is not None:
            numbers["bias"] = own
        return numbers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Following:
        """Move the module; what the layer is given at each call stays a shape."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._given:
            self.layer._buffers[name] = _shape_of(self.layer.get_buffer(name))
        return self

    def extra_repr(self) -> str:
        """Say what is followed."""
        parts = {"weight": self._live.weight, "padding": self._live.pad}
        told = " and ".join(name for name, part in parts.items() if part is not None)
        return f"follows the {told} of its source"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "source" or name.startswith("__"):  # protocols, such as of copying
                raise
            return getattr(self.source, name)

    def __getstate__(self) -> dict[str, Any]:
        # What is alive belongs to the source: a copy asks its own.
        return {name: value for name, value in vars(self).items() if name != "_live"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._live = self._recognise(self.source).live or Live()


def _shape_of(number: Tensor) -> Tensor:
    """A zero of the same shape, dtype and device, stored once."""
    return number.detach().new_zeros(()).expand(number.shape)


def _with_keys_of_the_source(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """After `state_dict`: the keys of the source stand where it stood."""
    own = prefix + "source."
    for key in [key for key in state if key.startswith(own)]:
        state[prefix + key[len(own) :]] = state.pop(key)


def _with_keys_of_the_parts(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before `load_state_dict`: the keys of the source lead to it."""
    parts = (prefix + "layer.", prefix + "source.")
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(parts)]:
        state[prefix + "source." + key[len(prefix) :]] = state.pop(key)
