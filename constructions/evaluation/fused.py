"""The fused evaluation: stock attention, of queries and keys made of integers."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from constructions.encodings import Absolute, Encoding
from constructions.evaluation.dense import concatenated
from constructions.formats import accumulator, unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.geometry.view import View
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.scores import check_scale
from constructions.layer.state import OutputSize
from constructions.matrix_units import Operation
from constructions.normalisers import Softmax
from constructions.tracing import constant_of_traced_code, is_exported, is_traced

DIGIT = 8
"""Bits of a digit: what the shortest format that a kernel rounds its operands to, bfloat16, has."""

STEEP = 2.0**100
"""The most that one-hot scores are multiplied by: sums that are exact, below 2^24 in float32 and
2^53 in float64, stay finite, and any attention is one-hot far below."""


@dataclass(frozen=True)
class Fused:
    """`scaled_dot_product_attention` on features of positions: memory grows with the tokens alone.

    A key is encoded by where it stands and a query by its target, in integers, so that their dot
    product is the score, in units of the gap, and 0 at the peak of each row. Kernels round their
    operands to the dtype of the image, and float32 perhaps to that of matrix units; integers are
    therefore split into digits of 8 bits (float64: left whole). The scores are exact while all sums
    fit the accumulator, and refused beyond. The sharpness multiplies last: in one-hot attention it
    is raised to a power of four, of which any kernel can take the root, and otherwise a kernel that
    multiplies operands by that root is not asked. Theorem: `absolute_scores_select_the_same_shift`.

    The gradient in the sharpness is that of the kernel, rounded where positions are large.
    """

    name: str = "fused"
    operation: Operation = "attention"

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """Scores must be dot products of integers, and of positions alone."""
        encoding = layer.encoding
        if not _relative(encoding).integer_differences:
            return f"the scores of {encoding} are not known to be integers, of key - target alone"
        if not isinstance(layer.normaliser, Softmax):
            return f"stock kernels have the softmax, and not {layer.normaliser}"
        # Traced code cannot look at content, but remembers a structure that has none.
        if not layer.shares_structure() and layer.has_live_content():
            return "content terms are trained, or not zero"
        if layer.positional_key.requires_grad or layer.positional_shift.requires_grad:
            return "positional parameters are trained"
        if not (layer.shares_structure() or _is_whole(layer)):
            return "a shift or a key matrix is not made of integers"
        if is_exported():
            return "how large positions are is not known while a layer is exported"
        if layer.positional_sharpness is not None and is_traced():
            return "a kernel wants its scale as a number, which traced code does not know"
        return None

    def limit(self, layer: MultiHeadSelfAttention, view: View) -> str | None:
        """All scores must be exact, and a kernel at hand that leaves them so."""
        dtype, device = view.image.dtype, view.image.device.type
        if not layer.is_saturated(dtype):
            if device not in ("cpu", "cuda") or (device == "cuda" and dtype == torch.float64):
                return f"torch has no fused kernel for {dtype} on {device}"
            if device == "cuda" and view.image.shape[1] > 256:
                return f"fused kernels take 256 channels, and the image has {view.image.shape[1]}"
        exact = accumulator(dtype)
        largest = 1 / unit_roundoff(exact)
        size, _, _ = _range(layer, *_plain(view))
        if math.isinf(size):
            return f"the scores of {layer.encoding} are not integers"
        if size >= largest:
            return (
                f"sums of the scores reach {size:.4g}, and {exact} is exact to {largest:.4g}: keys "
                f"are on {view.keys}"
            )
        return None

    def straight(
        self, layer: MultiHeadSelfAttention, x: Tensor, output_size: OutputSize
    ) -> Tensor | None:
        """Nothing: keys and queries stand on a view."""
        return None

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output; see `Evaluation`."""
        dtype = view.image.dtype
        lattices = _plain(view)
        _, of_features, of_names = _range(layer, *lattices)
        features, names = _products(layer, *(Lattice(*lattice) for lattice in lattices))
        if dtype != torch.float64:
            features, names = digits(features, names, of_features, of_names)
        values = view.values.flatten(2).transpose(1, 2).unsqueeze(1)  # (N, 1, K, C)
        width = max(features.shape[-1], values.shape[-1])
        # Fused kernels take operands of one width; zeros change no dot product.
        names, features = (F.pad(t, (0, width - t.shape[-1])) for t in (names, features))
        padded = F.pad(values, (0, width - values.shape[-1], 0, int(layer.has_sink))).contiguous()
        batch, channels = len(values), values.shape[-1]
        gap = layer.gap(view.keys)
        scale = layer.sharpness_in(dtype) / gap
        check_scale(scale, gap, dtype)
        if isinstance(scale, Tensor) and scale.requires_grad and torch.is_grad_enabled():
            names = names * (scale / scale.detach())  # by 1, which has a derivative
        saturated = layer.is_saturated(dtype)
        scale = float(scale.detach() if isinstance(scale, Tensor) else scale)
        if saturated:
            scale = 4.0 ** math.ceil(math.log2(min(scale, STEEP)) / 2)
        heads = layer.num_heads
        # Of no images any kernel is right; those of torch 2.11 that are fused take none.
        with contextlib.nullcontext() if saturated or not batch else _scaling_scores():
            seen = F.scaled_dot_product_attention(
                names.to(dtype).expand(batch, -1, -1, -1),
                features.to(dtype).expand(batch, heads, -1, -1),
                padded.expand(-1, heads, -1, -1),
                scale=scale,
            )[..., :channels]
        return concatenated(layer.heads, layer.bias, view, seen.to(accumulator(dtype)))


def _is_whole(layer: MultiHeadSelfAttention) -> bool:
    parameters = layer.positional_shift, layer.positional_key
    return all(torch.equal(p, p.round()) for p in parameters)


def _relative(encoding: Encoding) -> Encoding:
    return encoding.relative if isinstance(encoding, Absolute) else encoding


def _scaling_scores() -> contextlib.AbstractContextManager[None]:
    """The kernels that multiply dot products, and not operands, by the scale."""
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    )


def _plain(view: View) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The lattices of keys and queries as tuples, which traced code takes for constants."""
    return view.keys.constants, view.queries.constants


def _products(
    layer: MultiHeadSelfAttention, keys: Lattice, queries: Lattice
) -> tuple[Tensor, Tensor]:
    """Features of keys and names of targets, whose dot products are the scores.

    Equations 4 and 21 of `absolute_scores_select_the_same_shift`, the origin in the middle.

    Returns:
        features (K, F) and names (H, Q, F), the sink the last of the keys.
    """
    shifts = layer.shifts()
    first, last = shifts.new_tensor(keys.origin), shifts.new_tensor(keys.last)
    middle = ((first + last) / 2).floor()
    at_keys = keys.positions(shifts.device).to(shifts.dtype)
    at_queries = queries.positions(shifts.device).to(shifts.dtype)
    targets = (at_queries + shifts.unsqueeze(1)).flatten(0, 1)
    # Where a target has no key the nearest one is the peak, or the sink, which stands below it.
    peaks = targets if layer.has_sink else targets.clamp(first, last)

    features, names = _relative(layer.encoding).encode(
        torch.cat([at_keys, peaks]) - middle, targets - middle, keys
    )
    features, at_peaks = features[: len(at_keys)], features[len(at_keys) :]
    names = (
        names.view(len(shifts), -1, names.shape[-1]) @ layer.positional_key.detach().to(names).mT
    )
    of_row = -(names * at_peaks.view_as(names)).sum(dim=-1, keepdim=True)
    features = F.pad(features, (0, 1), value=1.0)
    names = torch.cat([names, of_row], dim=-1)
    height = layer.sink_height
    if height is None:
        return features, names
    gap = layer.gap(keys)
    # A row whose target has no key is raised by the height of the sink; else the sink is as low.
    lifted = torch.where(keys.contains(targets), 0.0, gap).view(*names.shape[:2], 1)
    features = F.pad(F.pad(features, (0, 1), value=height), (0, 1, 0, 1))
    features[-1, -1] = height
    return features, torch.cat([names, lifted, lifted - gap], dim=-1)


@constant_of_traced_code
def _range(
    layer: MultiHeadSelfAttention, *lattices: tuple[tuple[int, ...], ...]
) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """How large sums of the scores are, and how many digits each feature and name has.

    The size is in units of the least that a score can be a multiple of; inf where that is not an
    integer, or as large a part of one as the sink is high.
    """
    with torch.no_grad():
        features, names = _products(layer, *(Lattice(*lattice) for lattice in lattices))
        height = layer.sink_height
        unit = 1.0 if height is None else 1 / height
        whole = [(t * unit).frac().count_nonzero() == 0 for t in (features, names)]
        largest = [t.abs().flatten(0, -2).amax(dim=0) for t in (features, names)]
        size = unit * float((names.abs() @ largest[0]).max())
    if not all(whole):
        return math.inf, (), ()
    of_features, of_names = (
        tuple(max(1, math.ceil(int(n).bit_length() / DIGIT)) for n in columns.ceil().tolist())
        for columns in largest
    )
    return size, of_features, of_names


def digits(
    features: Tensor, names: Tensor, of_features: tuple[int, ...], of_names: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The same dot products, of numbers that have 8 bits each.

    A product of two sums of digits is the sum of the products of any two. Its power of two is
    divided between both sides, so that float16 does not overflow. Equation 22 of the theorem.
    """
    left, right = [], []
    for column, (n, m) in enumerate(zip(of_features, of_names, strict=True)):
        for i in range(n):
            for j in range(m):
                shift = DIGIT * (i + j)
                here = min(DIGIT, shift)
                left.append(_digit(features[..., column], i) * 2.0**here)
                right.append(_digit(names[..., column], j) * 2.0 ** (shift - here))
    return torch.stack(left, dim=-1), torch.stack(right, dim=-1)


def _digit(numbers: Tensor, place: int) -> Tensor:
    """A digit of integers, which the lowest of them, if it is half of one, is not."""
    if place == 0:
        return numbers.fmod(2.0**DIGIT)
    return (numbers / 2.0 ** (DIGIT * place)).trunc().fmod(2.0**DIGIT)
