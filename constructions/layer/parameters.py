"""The parameters of the layer: what is trained is the convolution's own; what is fixed is a buffer.

A layer with a head for each tap of a torch convolution keeps one kernel, `weight`, in torch's own
shape: of W_val and W_out one is a view of it, and the other, the identity, is not stored. Heads
that mix taps, and those whose factors are trained apart, keep `value` and `output`, and their
kernel is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from constructions.encodings import Mixing
from constructions.formats import accumulator, position_format
from constructions.geometry.geometry import Geometry
from constructions.heads import Heads, Kind
from constructions.layer.structure import as_stored, by_head, by_tap, products
from constructions.sources.native import AnyNative, NativeConvolution
from constructions.tracing import has_values

Own = TypeVar("Own", bound="HeadParameters")

POSITIONS = ("positional_key", "positional_shift", "positional_sharpness")
CONTENT = ("query", "key", "content_bias")
FACTORS = ("value", "output")

PARTS = {
    "content": CONTENT,
    "shifts": ("positional_key", "positional_shift"),
    "sharpness": ("positional_sharpness",),
    "value": ("value",),
    "output": ("output",),
}
"""What `unfreeze` takes, and the parameters that it makes."""


class HeadParameters(nn.Module):
    """The numbers of a layer's heads, copied from the heads that it is made of.

    Args:
        heads: where each looks, and what it applies; dtype and device are those of its matrices.
        sharpness: the gap in score between a head's shift and any other, or None.
        bias: b_out, (D_out,), or None.
        native: the convolution or pooling that the heads express, by torch's names, or None.

    Attributes:
        weight: the kernel, in torch's shape. Where it is stored, a parameter; else computed from
            `value` and `output`.
        value: W_val, (G, D_h, D_in / G, H), stored as a convolution stores its kernel: transposed
            and with the heads, its taps, last; a view of `weight` where that is stored, or None for
            the identity. `head_matrices` has one matrix for each head.
        output: W_out, (G, D_out / G, D_h, H), likewise.
        stores_kernel: whether the kernel is what is stored, under the name `weight`.
        bias: b_out, (D_out,) or None.
        query: W_qry, (H, D_in, D_k); None for zero.
        key: W_key, (H, D_in, D_k); None for zero.
        content_bias: u, (H, D_k); None for zero.
        positional_key: Ŵ_key, (H, D_p, D_k), a buffer.
        positional_shift: (H, d), a buffer: the shift Δ that names v; v_h = sharpness (-1, 2 Δ_h)
            for the quadratic encoding.
        positional_sharpness: (1,), a buffer, or None when saturated.
    """

    geometry: Geometry
    weight: Any  # a parameter, or what parametrisations and pruning make of it
    bias: nn.Parameter | None
    query: nn.Parameter | None
    key: nn.Parameter | None
    content_bias: nn.Parameter | None
    positional_key: Tensor
    positional_shift: Tensor
    positional_sharpness: Tensor | None

    def __init__(
        self,
        heads: Heads,
        sharpness: float | None,
        bias: Tensor | None,
        native: AnyNative | None,
    ) -> None:
        super().__init__()
        self.encoding = heads.encoding
        self.kind = heads.kind
        self.native = native
        self.num_heads = len(heads)
        self.in_channels = heads.in_channels
        self.out_channels = heads.out_channels
        self.groups = heads.groups
        self._sizes = *heads.dimensions, heads.positional_key.shape[-1]

        dtype, device = heads.dtype, heads.device
        exact = accumulator(dtype)

        def copied(numbers: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            own = torch.empty(numbers.shape, dtype=dtype, device=device)
            return own.copy_(numbers.detach())

        one = heads.output if heads.value is None else heads.value
        self.stores_kernel = (
            isinstance(native, NativeConvolution)
            and heads.kind is Kind.SELECTING
            and (heads.value is None or heads.output is None)
            and native.taps == len(heads)
        )
        if self.stores_kernel:
            assert isinstance(native, NativeConvolution)
            assert one is not None
            self.register_parameter("weight", nn.Parameter(copied(native.weight_of(one))))
        else:
            for name, matrices in zip(FACTORS, (heads.value, heads.output), strict=True):
                own = None if matrices is None else copied(as_stored(matrices))
                if heads.kind is Kind.UNIFORM:  # a pooling has no parameters and no format
                    self.register_buffer(name, own, persistent=False)
                else:
                    self.register_parameter(name, None if own is None else nn.Parameter(own))
        self.register_parameter("bias", None if bias is None else nn.Parameter(copied(bias)))
        for name in CONTENT:
            self.register_parameter(name, None)
        self.register_buffer(
            "positional_key", copied(heads.positional_key, exact), persistent=False
        )
        self.register_buffer("positional_shift", copied(heads.shifts, exact), persistent=False)
        own = None
        if sharpness is not None:
            own = torch.tensor([sharpness], dtype=position_format(device), device=device)
        self.register_buffer("positional_sharpness", own)

    @property
    def numbers(self) -> Tensor:
        """What is stored of the matrices: a tensor of the layer's dtype and device."""
        if self.stores_kernel:
            kernel: Tensor = self.weight
            return kernel
        stored: Tensor = self.output if self.value is None else self.value
        return stored

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's values; of a pooling, which has none, the default."""
        return torch.float32 if self.kind is Kind.UNIFORM else self.numbers.dtype

    def __getattr__(self, name: str) -> Any:
        """What is stored; and what is computed where it is not."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "weight" and self._computes_kernel():
                return self._kernel()
            if name in FACTORS and self.__dict__.get("stores_kernel", False):
                matrices = self._trained_matrices()[FACTORS.index(name)]
                return None if matrices is None else as_stored(matrices)
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and self._computes_kernel():
            raise AttributeError(
                "weight is computed from value and output; accepted: new numbers for these, since "
                f"the heads of {self.encoding} mix all taps, or are trained in two factors"
            )
        super().__setattr__(name, value)

    def _computes_kernel(self) -> bool:
        """Whether the layer has a kernel that is not stored; false until that is settled."""
        return not self.__dict__.get("stores_kernel", True) and self.kind is not Kind.UNIFORM

    def _kernel(self) -> Tensor:
        """The kernel that the factors make, in torch's shape."""
        heads, native = self.heads, self.native
        if not isinstance(native, NativeConvolution):
            raise AttributeError("weight: the layer was made of heads, and of no convolution")
        if not isinstance(self.encoding, Mixing):
            return native.weight_of(by_tap(heads, self.geometry))
        # M = b W, and b has as many independent columns as there are taps.
        matrices = products(heads, heads.dtype)
        shifts = heads.shifts.detach().double()
        taps = self.encoding.taps_of(matrices, shifts, native.taps)
        return native.weight_of(taps.to(heads.dtype))

    def _trained_matrices(self) -> tuple[Tensor | None, Tensor | None]:
        """W_val and W_out by head, None for the identity."""
        if not self.stores_kernel:
            value, output = self.value, self.output
            return (
                None if value is None else by_head(value),
                None if output is None else by_head(output),
            )
        assert isinstance(self.native, NativeConvolution)
        matrices = self.native.taps_of(self.weight, self.groups)
        d_in, d_out = matrices.shape[2:]
        return (matrices, None) if d_out <= d_in else (None, matrices)

    @property
    def heads(self) -> Heads:
        """The heads as the parameters are now: a view of them."""
        value, output = self._trained_matrices()
        key, shift = self.positional_key, self.positional_shift
        return Heads(self.encoding, shift, key, value, output, kind=self.kind)

    def head_matrices(self) -> tuple[Tensor, Tensor]:
        """Every head's W_val, (H, G, D_in / G, D_h), and W_out, (H, G, D_h, D_out / G).

        Views of what is stored, of `weight` or of the two factors; the identity is expanded.
        """
        return self.heads.matrices()

    def structural(self) -> list[Tensor]:
        """What is stored that decides whether the heads share a structure."""
        buffers, parameters = self._buffers, self._parameters
        found = [
            buffers[name] if name in buffers else parameters[name]
            for name in ("positional_key", "positional_shift", *CONTENT)
        ]
        return [tensor for tensor in found if tensor is not None]

    def shifts(self) -> Tensor:
        """The shifts, (H, d), detached, in the format that positions are computed in."""
        return self.positional_shift.detach().to(position_format(self.positional_shift.device))

    def has_live_content(self) -> bool:
        """Whether any of the three content terms can be other than zero, or is being trained.

        Where values cannot be looked at, those that are stored are taken to be live.
        """
        terms = [term for term in (self.query, self.key, self.content_bias) if term is not None]
        if terms and not has_values(*terms):
            return True
        return any(term.requires_grad or bool(term.count_nonzero().item()) for term in terms)

    def unfreeze(self: Own, *parts: str) -> Own:
        """Make parts of the layer parameters, to be trained; the kernel and the bias are already.

        Args:
            parts: of "content", W_qry, W_key and u, which are made zero; "shifts", with the
                positional key; "sharpness", of a layer that is not saturated, which is rounded to
                the format of the layer's sums, as FSDP wants it; "value" and
                "output", the two factors of the kernel: what one of them was, `weight`, is then
                computed.

        Returns:
            The layer itself.

        Raises:
            ValueError: another name, the sharpness of a saturated layer, or anything of a pooling.
        """
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"parts has {part!r}; accepted: {', '.join(map(repr, PARTS))}")
        if parts and self.kind is Kind.UNIFORM:
            raise ValueError(
                f"parts has {parts}, and the layer is that of a pooling, whose scores are 0 in its "
                "window and -inf elsewhere, of which no gradient is a number; accepted: the layer "
                "of a convolution, such as a depthwise one"
            )
        if "sharpness" in parts and self.positional_sharpness is None:
            raise ValueError(
                "parts has 'sharpness', and the layer is saturated; accepted: a layer made with a "
                "sharpness"
            )
        if self.stores_kernel and {"value", "output"} & set(parts):
            self._keep_factors()
        for name in (name for part in parts for name in PARTS[part]):
            tensor: Any = getattr(self, name)
            if tensor is None:
                tensor = self._made(name)
            if name == "positional_sharpness":
                tensor = self._trainable_sharpness()
            if name in self._buffers:
                del self._buffers[name]
                self._non_persistent_buffers_set.discard(name)
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor.detach())
            self.register_parameter(name, tensor.requires_grad_())
        return self

    def _trainable_sharpness(self) -> Tensor:
        """The sharpness in the format of sums, as FSDP wants all that it shards together."""
        own = self.positional_sharpness
        assert own is not None
        kept = own.to(accumulator(self.dtype))
        if has_values(kept) and not 0 < kept.item() < math.inf:
            raise ValueError(
                f"parts has 'sharpness', and {own.item():g} is no positive number of "
                f"{kept.dtype}, in which it would be trained; accepted: a layer made with another"
            )
        return kept

    def _made(self, name: str) -> Tensor:
        """A term that was not stored: zero, or the identity."""
        inputs, _, d_k = self._sizes
        if name in FACTORS:
            return as_stored(self.head_matrices()[FACTORS.index(name)]).contiguous()
        width = () if name == "content_bias" else (inputs,)
        return self.numbers.new_zeros(self.num_heads, *width, d_k)

    def _keep_factors(self) -> None:
        """Store the kernel as the factor that it is, and the identity, which is not trained."""
        trained, factors = self.weight.requires_grad, self.head_matrices()
        kernel = "output" if self.value is None else "value"
        del self.weight
        self.stores_kernel = False
        for name, matrices in zip(FACTORS, factors, strict=True):
            own = as_stored(matrices.detach()).clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(own, trained and name == kernel))

    def _apply(self: Own, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Own:
        """Move the layer; positions follow to a device, never to another dtype."""
        positions = (self.positional_key, self.positional_shift, self.positional_sharpness)
        kept = [t for p in positions if p is not None for t in (p, p.grad)]
        if self.kind is Kind.UNIFORM:
            kept += [self.value, self.output]

        def moved(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype != tensor.dtype and any(tensor is t for t in kept):
                return tensor.to(applied.device)
            return applied

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Load; a state_dict of version 0.1, in which all was a parameter, is taken too."""
        translate(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def translate(layer: HeadParameters, state_dict: dict[str, Any], prefix: str) -> None:
    """Bring the keys of an older state_dict, in which all was a parameter, up to date."""

    def older(name: str) -> Tensor | None:
        """What the state_dict has under a name that is not stored; it is taken out."""
        own = layer._parameters.get(name) is not None
        taken: Tensor | None = None if own else state_dict.pop(f"{prefix}{name}", None)
        return taken

    sharpness = f"{prefix}positional_sharpness"
    if sharpness in state_dict:
        state_dict[sharpness] = state_dict[sharpness].reshape(1)
    content = [state_dict.get(f"{prefix}{name}") for name in CONTENT]
    if layer.query is None and any(term is not None and term.count_nonzero() for term in content):
        layer.unfreeze("content")
    for name in CONTENT:
        older(name)
    with torch.no_grad():
        for name in ("positional_key", "positional_shift"):
            if (positions := older(name)) is not None:
                getattr(layer, name).copy_(positions)
    value, output = (older(name) for name in FACTORS)
    if layer.stores_kernel and value is not None and output is not None:
        assert isinstance(layer.native, NativeConvolution)
        matrices = by_head(value) @ by_head(output)
        state_dict[f"{prefix}weight"] = layer.native.weight_of(matrices)
