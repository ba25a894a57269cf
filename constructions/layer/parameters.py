"""The parameters of the layer: the numbers of its heads, and how they are stored and moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from constructions.formats import accumulator, position_format
from constructions.heads import Heads
from constructions.layer.structure import as_stored, by_head
from constructions.tracing import has_values

Own = TypeVar("Own", bound="HeadParameters")


class HeadParameters(nn.Module):
    """The numbers of a layer's heads, copied from the heads that it is made of.

    Matrices, sharpness and bias are trained; content terms and positions are frozen, as they were
    made.

    Args:
        heads: where each looks, and what it applies; dtype and device are those of its matrices.
        sharpness: the gap in score between a head's shift and any other, or None.
        bias: b_out, (D_out,), or None.

    Attributes:
        query: W_qry, (H, D_in, D_k), made zero.
        key: W_key, (H, D_in, D_k), made zero.
        content_bias: u, (H, D_k), made zero.
        positional_key: Ŵ_key, (H, D_p, D_k).
        positional_shift: (H, d), the shift Δ that names v: v_h = sharpness (-1, 2 Δ_h) for the
            quadratic encoding.
        positional_sharpness: scalar, or None when saturated.
        value: W_val, (G, D_h, D_in / G, H), stored as a convolution stores its kernel: transposed
            and with the heads, its taps, last. `head_matrices` has one matrix for each head.
        output: W_out, (G, D_out / G, D_h, H), likewise.
        bias: b_out, (D_out,) or None.
    """

    positional = ("positional_key", "positional_shift", "positional_sharpness")
    content = ("query", "key", "content_bias")

    def __init__(self, heads: Heads, sharpness: float | None, bias: Tensor | None) -> None:
        super().__init__()
        self.encoding = heads.encoding
        self.kind = heads.kind
        self.num_heads = len(heads)
        self.in_channels = heads.in_channels
        self.out_channels = heads.out_channels
        self.groups = heads.groups

        dtype, device = heads.value.dtype, heads.value.device
        exact = accumulator(dtype)

        def copied(numbers: Tensor, dtype: torch.dtype, trained: bool) -> nn.Parameter:
            own = torch.empty(numbers.shape, dtype=dtype, device=device)
            return nn.Parameter(own.copy_(numbers.detach()), trained)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device), False)

        channels, d_k = heads.groups * heads.value.shape[2], heads.positional_key.shape[-1]
        self.query = zeros(self.num_heads, channels, d_k)
        self.key = zeros(self.num_heads, channels, d_k)
        self.content_bias = zeros(self.num_heads, d_k)
        self.positional_key = copied(heads.positional_key, exact, False)
        self.positional_shift = copied(heads.shifts, exact, False)
        self.positional_sharpness: nn.Parameter | None
        if sharpness is None:
            self.register_parameter("positional_sharpness", None)
        else:
            wide = torch.tensor(sharpness, dtype=position_format(device), device=device)
            self.positional_sharpness = nn.Parameter(wide)
        self.value = copied(as_stored(heads.value), dtype, True)
        self.output = copied(as_stored(heads.output), dtype, True)
        self.bias: nn.Parameter | None
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = copied(bias, dtype, True)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's values."""
        return self.value.dtype

    @property
    def heads(self) -> Heads:
        """The heads as the parameters are now: a view of them."""
        value, output = self.head_matrices()
        key, shift = self.positional_key, self.positional_shift
        return Heads(self.encoding, shift, key, value, output, kind=self.kind)

    def head_matrices(self) -> tuple[Tensor, Tensor]:
        """Every head's W_val, (H, G, D_in / G, D_h), and W_out, (H, G, D_h, D_out / G): views."""
        return by_head(self.value), by_head(self.output)

    def shifts(self) -> Tensor:
        """The shifts, (H, d), detached, in the format that positions are computed in."""
        return self.positional_shift.detach().to(position_format(self.value.device))

    def has_live_content(self) -> bool:
        """Whether any of the three content terms can be other than zero, or is being trained.

        Traced code, and the meta device, cannot look at values and take them to be live.
        """
        if not has_values(self.value):
            return True
        terms = (self.query, self.key, self.content_bias)
        return any(term.requires_grad or bool(term.count_nonzero().item()) for term in terms)

    def _apply(self: Own, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Own:
        """Move the layer; positional parameters follow to a device, never to another dtype."""
        positions = (self.positional_key, self.positional_shift, self.positional_sharpness)
        kept = [t for p in positions if p is not None for t in (p, p.grad)]

        def moved(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype != tensor.dtype and any(tensor is t for t in kept):
                return tensor.to(applied.device)
            return applied

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self
