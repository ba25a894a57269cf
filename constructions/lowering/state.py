"""The numbers of a lowered layer: what its state_dict has, and whose it takes."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Numbers(nn.Module):
    """Copies of the matrices and the bias, and a digest of what they are laid out for.

    A state_dict has all of them. It is taken by a layer of the same layout, and refused by any
    other.

    Args:
        value: W_val of all heads, (H, G, D_in / G, D_h); its dtype is the layer's.
        output: W_out, (H, G, D_h, D_out / G).
        bias: b_out, (D_out,), or None.
        layout: all that is no tensor, in words.

    Attributes:
        layout: the digest, (32,) uint8.
    """

    value: Tensor
    output: Tensor
    bias: Tensor | None
    layout: Tensor

    def __init__(self, value: Tensor, output: Tensor, bias: Tensor | None, layout: str) -> None:
        super().__init__()
        # An object without words of its own is told by its class: where it lies is by chance.
        same = re.sub(r" at 0x[0-9a-fA-F]+", "", layout)
        digest = list(hashlib.sha256(same.encode()).digest())
        with not_in_inference():
            for name, tensor in (("value", value), ("output", output), ("bias", bias)):
                self.register_buffer(name, None if tensor is None else tensor.detach().clone())
            here = torch.tensor(digest, dtype=torch.uint8, device=value.device)
            self.register_buffer("layout", here)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's values."""
        return self.value.dtype

    def versions(self) -> tuple[tuple[int, int], ...] | None:
        """What changes with the matrices; None where nothing does.

        Those of a layer that was moved in inference mode may change unseen.
        """
        matrices = self.value, self.output
        if any(matrix.is_inference() for matrix in matrices):
            return None
        return tuple((id(matrix), matrix._version) for matrix in matrices)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the numbers of a layer of the same layout; refuse those of any other."""
        given = any(prefix + name in state_dict for name in self._buffers)
        layout = state_dict.get(prefix + "layout")
        if given and (layout is None or not torch.equal(layout.cpu(), self.layout.cpu())):
            error_msgs.append(
                f"{prefix}layout is not that of this lowered layer: its heads look elsewhere, or "
                "its geometry or tolerance is another; accepted: the state_dict of one lowered "
                "from a layer with the same positions and sharpness"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


@contextlib.contextmanager
def not_in_inference() -> Iterator[None]:
    """Make tensors that any later call may use, with gradients or without."""
    with torch.inference_mode(False), torch.no_grad():
        yield
