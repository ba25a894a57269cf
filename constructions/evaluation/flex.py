"""The flex evaluation: FlexAttention, its scores read from a table and its blocks from a band."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.evaluation.dense import concatenated
from constructions.evaluation.fused import STEEP
from constructions.formats import accumulator
from constructions.geometry.lattice import Lattice, displacements
from constructions.geometry.view import View
from constructions.heads import Kind
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.scores import below_peaks, check_scale
from constructions.layer.state import OutputSize
from constructions.matrix_units import Operation
from constructions.normalisers import Softmax
from constructions.tracing import is_traced

BLOCK = 128
"""Queries and keys in a block of the mask, as FlexAttention has it by default."""

SHAPES = 64
"""Kernels that a process may compile, unless `torch._dynamo.config.recompile_limit` is larger."""


@dataclass(frozen=True)
class Flex:
    """`flex_attention`: time grows with the band of keys that have a weight, memory with tokens.

    The score of a query and a key is that of the dense evaluation, looked up at their displacement,
    and so any relative encoding will do. A block of keys in which every exponential of a block of
    queries is exactly 0 is never visited. The kernel is made by `torch.compile` on the first call,
    which takes seconds; on the CPU torch has it for inference and without float64.
    """

    name: str = "flex"
    operation: Operation = "attention"

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """Scores must be functions of displacements."""
        if layer.kind is Kind.MIXING or layer.encoding.absolute:
            return f"the scores of {layer.encoding} are not those of one shift at a displacement"
        if not isinstance(layer.normaliser, Softmax):
            return f"stock kernels have the softmax, and not {layer.normaliser}"
        # Traced code cannot look at content, but remembers a structure that has none.
        if not layer.shares_structure() and layer.has_live_content():
            return "content terms are trained, or not zero"
        if layer.boundary == "natural" and layer.border.name == "replicate":
            return "scores round where their peak is at the edge, unless boundary is 'padded'"
        return None

    def limit(self, layer: MultiHeadSelfAttention, view: View) -> str | None:
        """What torch has no kernel for."""
        if view.image.device.type != "cpu":
            return None
        if view.image.dtype == torch.float64:
            return "torch has no FlexAttention for float64 on the CPU"
        trained = view.image.requires_grad or any(p.requires_grad for p in layer.parameters())
        if torch.is_grad_enabled() and trained:
            return "FlexAttention has no backward pass on the CPU, and torch.no_grad() is not set"
        return None

    def straight(
        self, layer: MultiHeadSelfAttention, x: Tensor, output_size: OutputSize
    ) -> Tensor | None:
        """Nothing: keys and queries stand on a view."""
        return None

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output; see `Evaluation`."""
        dtype = view.image.dtype
        keys, queries = view.keys, view.queries
        table, peaks = _scores(layer, keys, queries)
        of_keys, of_queries = _codes(keys, queries, table.device)
        # A sink is read at any place, and then replaced.
        of_keys = F.pad(of_keys, (0, int(layer.has_sink)), value=int(of_keys[0]))
        size, exact = keys.size, accumulator(dtype)
        gap = layer.gap(keys)
        scale = torch.as_tensor(layer.sharpness_in(dtype) / gap, dtype=table.dtype)
        check_scale(scale, gap, dtype)
        if layer.is_saturated(dtype):
            # Any larger one has the same weights, and with a power of two no score rounds.
            scale = scale.clamp(max=STEEP).log2().ceil().exp2()
        table, peaks = table * scale, (peaks * scale).to(exact)
        band = _band(layer, keys, queries, table)
        table = table.to(exact)
        low = (-(layer.sink_height or 0.0) * gap * scale).to(exact)

        def score(_: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            of_key = table[head, of_keys[key] - of_queries[query]]
            return torch.where(key < size, of_key, low) - peaks[head, query]

        values = view.values.flatten(2).transpose(1, 2).unsqueeze(1)  # (N, 1, K, C)
        values = F.pad(values, (0, 0, 0, int(layer.has_sink))).contiguous()
        batch, heads = len(values), layer.num_heads
        nothing = values.new_zeros(1, 1, 1, 16)
        seen = kernel()(
            nothing.expand(batch, heads, queries.size, -1),
            nothing.expand(batch, heads, values.shape[2], -1),
            values.expand(-1, heads, -1, -1),
            score_mod=score,
            block_mask=band,
            scale=1.0,
        )
        return concatenated(layer.heads, layer.bias, view, seen.to(exact))


def kernel() -> Callable[..., Any]:
    """FlexAttention, compiled for each shape; traced code compiles it itself."""
    # Not at the top: it imports the compiler.
    from torch.nn.attention.flex_attention import flex_attention

    stock: Callable[..., Any] = flex_attention
    return stock if is_traced() else _compiled(stock)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo.config as dynamo

    # With sizes that vary, torch 2.13 writes C++ for the CPU that does not compile. Beyond a number
    # of shapes dynamo goes on uncompiled, in quadratic memory; of a full graph it says so instead.
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)

    def of_any_shape(*arguments: Any, **options: Any) -> Any:
        limit = max(SHAPES, dynamo.recompile_limit)
        with dynamo.patch(recompile_limit=limit):
            return compiled(*arguments, **options)

    return of_any_shape


def _scores(
    layer: MultiHeadSelfAttention, keys: Lattice, queries: Lattice
) -> tuple[Tensor, Tensor]:
    """Scores at displacements, (H, M), and at the peaks of rows, (H, Q), in units of the encoding.

    A head's own shift has 0, and so has the peak, unless it is the sink.
    """
    shifts = layer.positional_shift.to(layer.shifts().dtype)
    box = displacements(keys, queries).positions(shifts.device).to(shifts.dtype)
    matrices = layer.positional_key.to(shifts.dtype)
    table = below_peaks(layer.encoding, box, shifts, keys, matrices)
    height = layer.sink_height
    if height is None:
        return table, table.new_zeros(len(table), queries.size)
    targets = queries.positions(shifts.device) + shifts.detach().unsqueeze(1)  # (H, Q, d)
    return table, torch.where(keys.contains(targets), 0.0, -height * layer.gap(keys))


def _codes(keys: Lattice, queries: Lattice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers of keys and queries whose difference is the place of their displacement."""
    box = displacements(keys, queries)
    strides = torch.tensor([math.prod(box.shape[a + 1 :]) for a in range(len(box.shape))])
    lowest = (torch.tensor(box.origin) * strides).sum().to(device)
    strides = strides.to(device)
    of_keys = (keys.positions(device) * strides).sum(dim=-1)
    return of_keys - lowest, (queries.positions(device) * strides).sum(dim=-1)


def _band(layer: MultiHeadSelfAttention, keys: Lattice, queries: Lattice, table: Tensor) -> Any:
    """The blocks with a key whose exponential is not 0, or None for all of them.

    A block is taken for the box that holds it.
    """
    if is_traced():
        return None  # which blocks there are depends on values
    from torch.nn.attention.flex_attention import BlockMask

    gap = layer.normaliser.one_hot_gap(accumulator(layer.dtype))
    # A row whose target has no key has its peak at the sink.
    lowered = 1 - (layer.sink_height or 0.0)
    heavy = table.detach() * lowered > -gap  # (H, M)
    box = displacements(keys, queries).positions(table.device)
    far = torch.iinfo(box.dtype).max // 4
    lowest = torch.where(heavy.unsqueeze(-1), box, far).amin(dim=1)[:, None, None]
    highest = torch.where(heavy.unsqueeze(-1), box, -far).amax(dim=1)[:, None, None]
    key_low, key_high = _boxes(keys.positions(table.device))
    query_low, query_high = _boxes(queries.positions(table.device))
    kept = (key_low <= query_high.unsqueeze(1) + highest) & (
        key_high >= query_low.unsqueeze(1) + lowest
    )
    kept = kept.all(dim=-1)  # (H, blocks of queries, blocks of keys)
    if layer.has_sink:
        kept = F.pad(kept, (0, int(keys.size % BLOCK == 0)))
        kept[..., -1] = True
    count = kept.sum(dim=-1, dtype=torch.int32).unsqueeze(0)
    order = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)

    def visited(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept[head, query // BLOCK, key // BLOCK]

    return BlockMask.from_kv_blocks(
        torch.zeros_like(count),
        order.unsqueeze(0),
        count,  # blocks in which every key is visited
        order.unsqueeze(0),
        BLOCK_SIZE=BLOCK,
        mask_mod=visited,
        seq_lengths=(queries.size, keys.size + int(layer.has_sink)),
    )


def _boxes(positions: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest coordinates in each block of tokens, (blocks, d) each."""
    short = -len(positions) % BLOCK
    filled = torch.cat([positions, positions[-1:].expand(short, -1)])
    filled = filled.view(-1, BLOCK, positions.shape[1])
    return filled.amin(dim=1), filled.amax(dim=1)
