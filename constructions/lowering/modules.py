"""Attention of other libraries whose scores are positions alone, read as tables.

Classes are known by their whole name, and never imported. Each reader returns the scores of the
pixels of a grid, query by key, which have to be functions of the displacement; what a module makes
of its content must be the same for all keys. Theorem: `positional_heads_are_convolutions`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from constructions.certificate.rounding import gamma
from constructions.formats import DOUBLE, check_format, unit_roundoff
from constructions.geometry.geometry import Geometry
from constructions.geometry.lattice import Lattice, displacements
from constructions.geometry.padding_modes import Zeros
from constructions.geometry.view import NATURAL
from constructions.lowering.groups import ScoredHead, grouped
from constructions.lowering.lowered import Lowered
from constructions.lowering.tables import Stored

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Positional:
    """The heads of a module, on the pixels of a grid.

    Args:
        scores: (H, queries, keys), what is added to scores that content leaves alike; -inf where a
            mask is.
        sinks: the score of one more key, of zero value, for each head; None without one.
        value: W_val, (H, D_in, D_h), in the module's dtype.
        value_bias: (H, D_h), or None.
        output: W_out, (H, D_h, D_out).
        output_bias: (D_out,), or None.
        slack: what the scores may err, as coefficients of ‖δ‖² and of each |δ_i|, (H, 1 + d); None
            where they are stored numbers.
    """

    scores: Tensor
    sinks: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    slack: Tensor | None = None


def reader_of(module: nn.Module) -> Callable[[Any, Grid | None], tuple[Grid, Positional]] | None:
    """How a module is read, by the whole name of its class; None if it is not known."""
    return READERS.get(f"{type(module).__module__}.{type(module).__qualname__}")


def lowered_module(module: nn.Module, grid: Sequence[int] | None) -> Lowered:
    """A module of another library, called with the image that its tokens are the pixels of.

    Args:
        module: of a known class.
        grid: the pixels on each axis; None where the module says.

    Raises:
        TypeError: grid is no sequence of integers.
        ValueError: the content is live, or the module has no scores for this grid.
    """
    read = reader_of(module)
    assert read is not None
    asked = None
    if grid is not None:
        if not isinstance(grid, tuple | list) or not all(type(n) is int for n in grid):
            raise TypeError(f"grid is {grid!r}; accepted: a tuple of integers")
        asked = tuple(grid)
        if not asked or min(asked) < 1:
            raise ValueError(f"grid is {asked}; accepted: 1 pixel or more on each axis")
    shape, heads = read(module, asked)
    check_format(heads.value.dtype, "layer")
    keys = Lattice.box(shape)
    box = displacements(keys, keys)
    none, whole = (0.0,) * (1 + len(shape)), (0,) * len(shape)
    found = []
    for head, scores in enumerate(heads.scores.detach().to("cpu", DOUBLE)):
        sink = None if heads.sinks is None else float(heads.sinks[head].detach())
        entries = by_displacement(scores, keys, box)
        slack = none if heads.slack is None else tuple(heads.slack[head].tolist())
        found.append(ScoredHead(Stored(sink, entries, box), whole, slack))
    ones = (1,) * len(shape)
    return Lowered(
        groups=grouped(found),
        value=heads.value.detach().unsqueeze(1),
        output=heads.output.detach().unsqueeze(1),
        bias=folded(heads),
        geometry=Geometry(ones, ones, whole, whole, ones, ones, whole, transposed=False),
        border=Zeros(),
        boundary=NATURAL,
    )


def by_displacement(scores: Tensor, keys: Lattice, box: Lattice) -> Tensor:
    """The table of which scores are made, query by key.

    Args:
        scores: (queries, keys), both row-major on the same grid.
        keys: the grid.
        box: its displacements.

    Raises:
        ValueError: two pairs of one displacement have different scores, or one is neither finite
            nor the -inf of a mask, or a key is masked from its own query.
    """
    places = keys.positions()
    steps = places.unsqueeze(0) - places.unsqueeze(1) - torch.tensor(box.origin)
    number = torch.zeros(scores.shape, dtype=torch.int64)
    for axis, size in enumerate(box.shape):
        number = number * size + steps[..., axis]
    table = scores.new_zeros(box.size).scatter(0, number.flatten(), scores.flatten())
    has_values = (scores < torch.inf).all() and scores.diagonal().isfinite().all()
    if not torch.equal(table[number], scores) or not has_values:
        raise ValueError(
            "layer has scores that are not finite functions of key minus query; accepted: a table "
            "by displacement, -inf where a mask is, but not at the query itself"
        )
    return table


def folded(heads: Positional) -> Tensor | None:
    """b_out + Σ b_val W_out, rounded once to float64: rows of weights sum to 1."""
    bias, value = heads.output_bias, heads.value_bias
    if value is None or not value.count_nonzero():
        return bias
    total = [Fraction(0)] * heads.output.shape[2]
    if bias is not None:
        total = [Fraction(b) for b in bias.tolist()]
    for number, row in zip(value.flatten().tolist(), heads.output.flatten(0, 1), strict=True):
        if number:
            factors = [Fraction(w) * Fraction(number) for w in row.tolist()]
            total = [t + f for t, f in zip(total, factors, strict=True)]
    return torch.tensor([float(t) for t in total], dtype=DOUBLE, device=heads.output.device)


def _check_content(query: Tensor, query_bias: Tensor | None, key: Tensor) -> None:
    """Raise unless content scores are the same for all keys: no key matrix, or no query."""
    asks = query.count_nonzero() or (query_bias is not None and query_bias.count_nonzero())
    if asks and key.count_nonzero():
        raise ValueError(
            "layer has live content: neither its query nor its key matrix is zero, so that its "
            "weights depend on the input; accepted: positional scores alone"
        )


def _grid_of_its_own(name: str, own: Sequence[int], grid: Grid | None) -> Grid:
    own = tuple(int(n) for n in own)
    if grid not in (None, own):
        raise ValueError(f"grid is {grid}; accepted: None or {own}, the {name} of the layer")
    return own


def _by_head(matrix: Tensor, heads: int) -> Tensor:
    """The matrix of a linear layer from pixels to heads: (H, D_in, D_h)."""
    return matrix.reshape(heads, -1, matrix.shape[1]).transpose(1, 2)


def _of_heads(matrix: Tensor, heads: int) -> Tensor:
    """The matrix of a linear layer from heads to pixels: (H, D_h, D_out)."""
    return matrix.T.reshape(heads, -1, matrix.shape[0])


def _line(grid: Grid | None) -> int:
    """The number of tokens of a grid of one axis, which has to be given."""
    if grid is None or len(grid) != 1:
        raise ValueError(f"grid is {grid}; accepted: (T,), the number of tokens")
    return grid[0]


def _steps(tokens: int, device: torch.device) -> Tensor:
    """Key minus query, (queries, keys)."""
    place = torch.arange(tokens, device=device)
    return place - place.unsqueeze(1)


def _causal(scores: Tensor, steps: Tensor) -> Tensor:
    """Scores without keys that come after the query."""
    return scores.masked_fill(steps > 0, -torch.inf)


def _swin(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """timm's window attention, on one window, without a mask."""
    shape, heads = _grid_of_its_own("window", module.window_size, grid), module.num_heads
    query, key, value = module.qkv.weight.chunk(3)
    biases = [None] * 3 if module.qkv.bias is None else module.qkv.bias.chunk(3)
    _check_content(query, biases[0], key)
    table, index = module.relative_position_bias_table, module.relative_position_index
    return shape, Positional(
        scores=table[index.long()].permute(2, 0, 1),
        sinks=None,
        value=_by_head(value, heads),
        value_bias=None if biases[2] is None else biases[2].reshape(heads, -1),
        output=_of_heads(module.proj.weight, heads),
        output_bias=module.proj.bias,
    )


def _beit(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """timm's attention of BEiT, its class token of zeros: one more key, of zero value."""
    if module.relative_position_bias_table is None:
        raise ValueError("layer has no table of its own; accepted: one with a window_size")
    shape, heads = _grid_of_its_own("window", module.window_size, grid), module.num_heads
    query, key, value = module.qkv.weight.chunk(3)
    _check_content(query, module.q_bias, key)
    if module.v_bias is not None and module.v_bias.count_nonzero():
        raise ValueError(
            "layer has a bias of the values, which its class token has too; accepted: none, so "
            "that a class token of zeros is a sink"
        )
    table, index = module.relative_position_bias_table, module.relative_position_index.long()
    return shape, Positional(
        scores=table[index[1:, 1:]].permute(2, 0, 1),
        sinks=table[index[1, 0]],
        value=_by_head(value, heads),
        value_bias=None,
        output=_of_heads(module.proj.weight, heads),
        output_bias=module.proj.bias,
    )


def _t5(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """transformers' attention of T5, of an encoder's first layer, on a line."""
    if module.is_decoder or not module.has_relative_attention_bias:
        raise ValueError(
            "layer is of a decoder, or is given its bias by another; accepted: that of an encoder "
            "with a relative attention bias of its own, whose first layer has it"
        )
    tokens, heads = _line(grid), module.n_heads
    _check_content(module.q.weight, None, module.k.weight)
    buckets = module._relative_position_bucket(
        _steps(tokens, module.q.weight.device),
        bidirectional=True,
        num_buckets=module.relative_attention_num_buckets,
        max_distance=module.relative_attention_max_distance,
    )
    return (tokens,), Positional(
        scores=module.relative_attention_bias.weight[buckets].permute(2, 0, 1),
        sinks=None,
        value=_by_head(module.v.weight, heads),
        value_bias=None,
        output=_of_heads(module.o.weight, heads),
        output_bias=None,
    )


def _gpsa(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """timm's gated attention of ConViT: each head's positions and, beside them, a uniform head.

    Content that is the same for all keys attends to all alike. The gates are rounded into the
    values: the lowered layer has these numbers.
    """
    side = None if grid is None else math.isqrt(math.prod(grid))
    if grid is None or grid != (side, side):
        raise ValueError(f"grid is {grid}; accepted: (n, n), the square of tokens that it makes")
    query, key = module.qk.weight.chunk(2)
    bias = None if module.qk.bias is None else module.qk.bias.chunk(2)[0]
    _check_content(query, bias, key)
    heads, tokens = module.num_heads, grid[0] ** 2
    positions = module.get_rel_indices(tokens)[0].double() @ module.pos_proj.weight.double().T
    scores = positions.permute(2, 0, 1)
    weight = module.pos_proj.weight.detach().double().abs().flip(1).cpu()
    gates = module.gating_param.double().reshape(heads, 1, 1)
    value, output = _by_head(module.v.weight, heads), _of_heads(module.proj.weight, heads)
    parts = [(value.double() * g.sigmoid()).to(value.dtype) for g in (gates, -gates)]
    of_values = None
    if module.v.bias is not None:
        by_head = module.v.bias.double().reshape(heads, -1)
        of_values = torch.cat([by_head, torch.zeros_like(by_head)])  # both parts together have it
    return grid, Positional(
        scores=torch.cat([scores, torch.zeros_like(scores)]),
        sinks=None,
        value=torch.cat(parts),
        value_bias=of_values,
        output=torch.cat([output, output]),
        output_bias=module.proj.bias,
        # Three products, of the square and of each axis, the last one first, and their sum.
        slack=4 * unit_roundoff(DOUBLE) * torch.cat([weight, torch.zeros_like(weight)]),
    )


def _alibi(slopes: Tensor, tokens: int) -> Tensor:
    """Scores -m |δ| of the keys up to the query: products of float32 numbers and steps, exact."""
    steps = _steps(tokens, slopes.device)
    return _causal(slopes.to(DOUBLE).reshape(-1, 1, 1) * steps, steps)


def _bloom(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """transformers' attention of BLOOM as the model calls it: causal, with ALiBi; no residual."""
    tokens, heads = _line(grid), module.num_heads
    parts = module.query_key_value.weight.reshape(heads, 3, module.head_dim, -1)
    biases = module.query_key_value.bias.reshape(heads, 3, module.head_dim)
    _check_content(parts[:, 0], biases[:, 0], parts[:, 1])
    make: Any = vars(sys.modules[type(module).__module__])["build_alibi_tensor"]
    ones = torch.ones(1, 2, device=parts.device)
    slopes = make(ones, heads, torch.float32)[:, 0, 1]  # at the second key
    # Where it adds slice by slice it leaves its bias out.
    is_sliced = module.pretraining_tp > 1 and module.slow_but_exact
    return (tokens,), Positional(
        scores=_alibi(slopes, tokens),
        sinks=None,
        value=parts[:, 2].transpose(1, 2),
        value_bias=biases[:, 2],
        output=_of_heads(module.dense.weight, heads),
        output_bias=None if is_sliced else module.dense.bias,
    )


def _mpt(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """transformers' attention of MPT as the model calls it: causal, with ALiBi."""
    tokens, heads = _line(grid), module.n_heads
    if module.clip_qkv:
        raise ValueError(
            f"layer has clip_qkv {module.clip_qkv}, so that its values are no linear maps of the "
            "pixels; accepted: None"
        )
    query, key, value = module.Wqkv.weight.chunk(3)
    _check_content(query, None, key)
    make: Any = vars(sys.modules[type(module).__module__])["build_mpt_alibi_tensor"]
    slopes = -make(heads, 2, device=query.device)[:, 0, 0]  # one key before the last
    return (tokens,), Positional(
        scores=_alibi(slopes, tokens),
        sinks=None,
        value=_by_head(value, heads),
        value_bias=None,
        output=_of_heads(module.out_proj.weight, heads),
        output_bias=None,
    )


def _llama(module: Any, grid: Grid | None) -> tuple[Grid, Positional]:
    """transformers' attention of Llama, its queries and keys constants: biases, turned by position.

    A pair of channels of frequency θ has the score Re(q* k e^{iθδ}). Causal as the module is.
    """
    tokens, config = _line(grid), module.config
    if config.rope_parameters["rope_type"] != "default":
        raise ValueError(
            f"layer has the rope_type {config.rope_parameters['rope_type']!r}, whose frequencies "
            "are another module's; accepted: 'default'"
        )
    width, weight = module.head_dim, module.q_proj.weight
    constants = []
    for part in (module.q_proj, module.k_proj):
        bias = part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias
        constants.append(bias.detach().to(DOUBLE).reshape(-1, width))
    moving = [bool(part.weight.count_nonzero()) for part in (module.q_proj, module.k_proj)]
    if any(moving) and all(m or c.count_nonzero() for m, c in zip(moving, constants, strict=True)):
        raise ValueError(
            "layer has live content: a query or key matrix is not zero, and the other part is "
            "not, so that its weights depend on the input; accepted: positional scores alone, of "
            "queries and keys that are biases"
        )
    shared = module.num_key_value_groups
    query, key = constants[0], constants[1].repeat_interleave(shared, 0)
    heads, half = len(query), width // 2
    library = vars(sys.modules[type(module).__module__])
    rotary: Any = library["LlamaRotaryEmbedding"]
    turns, _ = rotary.compute_default_rope_parameters(config)
    turns = turns.to(weight.device, DOUBLE)
    steps = _steps(tokens, weight.device)
    angles = torch.arange(1 - tokens, tokens, device=weight.device).unsqueeze(1) * turns
    (q, r), (k, s) = query.split(half, 1), key.split(half, 1)
    along, across = (q * k + r * s).T, (q * s - r * k).T
    table = module.scaling * (angles.cos() @ along - angles.sin() @ across).T
    scores = table[:, steps + tokens - 1]
    # The sum, and the angle |δ| θ that is rounded; where two keys are, the farthest is a step away.
    size = module.scaling * ((q.abs() + r.abs()) * (k.abs() + s.abs())).sum(1)
    size *= max(1.0, float(turns.max()))
    slack = torch.stack([torch.zeros_like(size), gamma(width + 16, DOUBLE) * size], 1)
    value = _by_head(module.v_proj.weight, heads // shared)
    of_values = None
    if module.v_proj.bias is not None:
        of_values = module.v_proj.bias.reshape(-1, width).repeat_interleave(shared, 0)
    return (tokens,), Positional(
        scores=_causal(scores, steps) if module.is_causal else scores,
        sinks=None,
        value=value.repeat_interleave(shared, 0),
        value_bias=of_values,
        output=_of_heads(module.o_proj.weight, heads),
        output_bias=module.o_proj.bias,
        slack=slack,
    )


READERS: Mapping[str, Callable[[Any, Grid | None], tuple[Grid, Positional]]] = {
    "timm.models.swin_transformer.WindowAttention": _swin,
    "timm.models.beit.Attention": _beit,
    "timm.models.convit.GPSA": _gpsa,
    "transformers.models.bloom.modeling_bloom.BloomAttention": _bloom,
    "transformers.models.llama.modeling_llama.LlamaAttention": _llama,
    "transformers.models.mpt.modeling_mpt.MptAttention": _mpt,
    "transformers.models.t5.modeling_t5.T5Attention": _t5,
}
"""By the whole name of the class, as it is in timm 1.0.31 and transformers 5.23."""
