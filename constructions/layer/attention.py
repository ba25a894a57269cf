"""The layer: multi-head self-attention with relative positions, in any dimension.

    A^h_{q,k} =   X_q W_qry W_key^T X_k^T  +  X_q W_qry Ŵ_key^T r_δ
                + u^T W_key^T X_k^T        +  v^T Ŵ_key^T r_δ          δ = k - q
    Y = concat_h(softmax(A^h) X W_val^h) W_out + b_out

(arXiv 1911.03584, eqs. 1 to 3 and 8.) The layer holds the parameters; the encoding, the normaliser,
the border and the evaluation are objects that it is given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.encodings import Encoding, Window, is_mixing, on_axes
from constructions.formats import accumulator
from constructions.geometry.geometry import Geometry, checked_spatial_shape, offsets_in_order
from constructions.geometry.lattice import Lattice, displacements
from constructions.geometry.padding_modes import PaddingMode, Zeros, check_reach, padded
from constructions.geometry.view import Boundary, View
from constructions.layer.scores import own_row, rows_below_targets
from constructions.layer.soft_padding import SINK_HEIGHT, SoftPadding
from constructions.matrix_units import Operation
from constructions.normalisers import Normaliser


class Evaluation(Protocol):
    """One way of computing the layer; all ways compute the same function of finite inputs."""

    @property
    def name(self) -> str:
        """The name that `attention_from_conv` takes."""

    @property
    def operation(self) -> Operation:
        """What it asks torch for, for which `units` says how a device multiplies."""

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """Why this way does not apply to the layer as it stands, or None."""

    def limit(self, layer: MultiHeadSelfAttention, view: View) -> str | None:
        """Why this way does not apply to an input, if it applies to the layer, or None."""

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output, (N, D_out, *queries.shape), of the image's dtype."""


class MultiHeadSelfAttention(nn.Module):
    """The paper's multi-head self-attention layer, with all four score terms.

    It is called as the convolution it stands for: (N, D_in, *spatial) or (D_in, *spatial), to the
    shape that the convolution returns. `attention_from_conv` sets its weights; fresh, all are zero
    and every head attends to all keys alike.

    Position scores are formed from exact integers in float64, multiplied by the sharpness last and
    centred: a head's score at its own shift is 0. Scores and softmax run in float32 (float64 in a
    float64 layer); weights are then cast to the dtype of the layer. Neither autocast nor
    `.to(bfloat16)` changes this: positional parameters keep the dtype that they were made with.

    Args:
        geometry: where pixels, keys and queries stand.
        border: what stands beyond the edge.
        boundary: whether that is made of keys.
        encoding: features of displacements and names of shifts.
        normaliser: scores to weights.
        evaluations: how the layer is computed: by the first of these that applies.
        num_heads: H.
        in_channels: D_in; None for a layer that treats every channel of its input alike and apart.
        out_channels: D_out; None likewise.
        groups: G, the blocks of W_val and W_out.
        head_dim: D_h, for each group.
        encoding_dim: D_p; also D_k, the dimension of queries and keys.
        sharpness: the gap in score between a head's shift and any other; None for the gap from
            which the weights are one-hot in the layer's dtype.
        bias: whether there is a b_out.
        dtype: of the layer; one of the four IEEE and brain formats.
        device: of the layer.

    Attributes:
        query: W_qry, (H, D_in, D_k).
        key: W_key, (H, D_in, D_k).
        content_bias: u, (H, D_k).
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

    def __init__(
        self,
        *,
        geometry: Geometry,
        border: PaddingMode,
        boundary: Boundary,
        encoding: Encoding,
        normaliser: Normaliser,
        evaluations: Sequence[Evaluation],
        num_heads: int,
        in_channels: int | None,
        out_channels: int | None,
        groups: int,
        head_dim: int,
        encoding_dim: int,
        sharpness: float | None,
        bias: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.border = border
        self.encoding = encoding
        self.normaliser = normaliser
        self.boundary_rule = boundary
        self._evaluations = tuple(evaluations)
        self._shared = True
        self.num_heads = num_heads
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups

        d_in, d_out = in_channels or 1, out_channels or 1

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

        exact = accumulator(dtype)
        self.query = zeros(num_heads, d_in, encoding_dim)
        self.key = zeros(num_heads, d_in, encoding_dim)
        self.content_bias = zeros(num_heads, encoding_dim)
        self.positional_key = zeros(num_heads, encoding_dim, encoding_dim, dtype=exact)
        self.positional_shift = zeros(num_heads, geometry.dimension, dtype=exact)
        self.positional_sharpness: nn.Parameter | None
        if sharpness is None:
            self.register_parameter("positional_sharpness", None)
        else:
            self.positional_sharpness = zeros(dtype=_position_dtype(device))
            nn.init.constant_(self.positional_sharpness, sharpness)
        self.value = zeros(groups, head_dim, d_in // groups, num_heads)
        self.output = zeros(groups, d_out // groups, head_dim, num_heads)
        self.bias: nn.Parameter | None
        if bias:
            self.bias = zeros(d_out)
        else:
            self.register_parameter("bias", None)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's values."""
        return self.value.dtype

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
    def evaluation(self) -> str:
        """How the layer is computed: "factored", "fused", "flex" or "dense".

        By its structure; where "auto" has chosen "fused", an input beyond its range is computed
        densely.
        """
        return self._chosen_evaluation().name

    @property
    def has_sink(self) -> bool:
        """Whether the last key is a sink, of value zero and half the sharpness below a target."""
        vanishes = bool(getattr(self.normaliser, "vanishes", False))
        return not vanishes and self.boundary_rule.has_sink(self.border, self.geometry)

    def sharpness_in(self, dtype: torch.dtype) -> Tensor | float:
        """The sharpness for weights of a given dtype: the parameter, or what saturates them.

        A sink halves the gap between a target and what comes next.
        """
        if self.positional_sharpness is not None:
            return self.positional_sharpness
        return self._saturating_sharpness(dtype)

    def is_saturated(self, dtype: torch.dtype) -> bool:
        """Whether weights of a given dtype are exactly one-hot."""
        if isinstance(self.encoding, Window) or is_mixing(self.encoding):
            return False
        if self.positional_sharpness is None:
            return True
        if self._has_no_values:
            return False
        return self.positional_sharpness.item() >= self._saturating_sharpness(dtype)

    @property
    def _has_no_values(self) -> bool:
        """Whether values cannot be looked at: in traced code, and on the meta device."""
        return torch.compiler.is_compiling() or self.value.is_meta

    def _saturating_sharpness(self, dtype: torch.dtype) -> float:
        # Most scores fall so fast that few keys are near the gap. Where all may be, half precision
        # is not enough to make the peak 1 (T8): then float32 has to be one-hot.
        crowded = getattr(self.encoding, "crowded", True)
        gap = self.normaliser.one_hot_gap(accumulator(dtype) if crowded else dtype)
        return gap * (2 if self.has_sink else 1)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (N, D_in, *spatial) or (D_in, *spatial).
            output_size: of a transposed convolution, as torch takes it.

        Returns:
            (N, D_out, *output) or (D_out, *output), of the dtype and on the device of the layer;
            under autocast, of the autocast dtype, as a convolution returns.

        Raises:
            TypeError: x is not a tensor, or output_size is given without a transposed convolution.
            ValueError: wrong rank, channels, dtype or device, an empty grid, a border or an output
                size that the image does not allow.
        """
        spatial_shape = self._checked_spatial_shape(x)
        geometry = self._geometry(spatial_shape, output_size)
        batched = x.dim() == geometry.dimension + 2
        image = x if batched else x.unsqueeze(0)
        if _is_autocast(x.device.type):
            with self._without_autocast(x.device.type) as autocast_dtype:
                y = self._evaluated(image.to(autocast_dtype or self.dtype), geometry)
        else:
            y = self._evaluated(image, geometry)
        return y if batched else y.squeeze(0)

    def attention_weights(
        self,
        spatial_shape: Sequence[int],
        x: Tensor | None = None,
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        """The attention weights of every head, the definition of the layer.

        Args:
            spatial_shape: the input's, unbatched and unpadded.
            x: the input itself, which a layer with live content terms needs.
            output_size: as in `forward`.

        Returns:
            (H, queries, keys), row-major, of the layer's dtype; (N, H, queries, keys) for a layer
            with live content terms. Keys are the input's pixels (natural boundary), or the padded
            grid, zero-stuffed for a transposed convolution; the sink, if there is one, comes last.

        Raises:
            ValueError: as `forward`; or content terms live and x is missing.
        """
        shape = tuple(int(n) for n in spatial_shape)
        geometry = self._geometry(shape, output_size)
        if x is None:
            if self.has_live_content():
                raise ValueError(
                    "x is None; accepted: the input, since the layer's content terms are live and "
                    "its weights depend on it"
                )
            image = self.value.new_zeros(1, self.in_channels or 1, *shape)
        else:
            given = self._checked_spatial_shape(x)
            if given != shape:
                raise ValueError(f"x has spatial shape {given}; accepted: spatial_shape, {shape}")
            image = x if x.dim() == geometry.dimension + 2 else x.unsqueeze(0)
        with self._without_autocast(image.device.type):
            return self.weights(self._view(image.to(self.dtype), geometry))

    def weights(self, view: View) -> Tensor:
        """The attention weights for a given input; see `attention_weights`."""
        scores = self._position_scores(view)
        if self.has_live_content():
            content = self._content_scores(view)
            scores = scores + (F.pad(content, (0, 1)) if self.has_sink else content)
        return self.normaliser(scores).to(view.image.dtype)

    def soft_padding(self, view: View) -> SoftPadding:
        """P, the operator that the heads share, its weights rounded to the dtype of the image.

        Only for an encoding that is a sum over axes.
        """
        parts = on_axes(self.encoding, self.geometry.dimension)
        assert parts is not None
        keys = self.boundary_rule.keys(view)
        return SoftPadding.of(
            parts,
            self.sharpness_in(view.image.dtype),
            keys,
            view.targets,
            gap=self.gap(keys),
            sink_height=SINK_HEIGHT if self.has_sink else None,
            dtype=view.image.dtype,
            exact=_position_dtype(self.value.device),
            device=self.value.device,
        )

    def values(self, view: View) -> Tensor:
        """What stands on the keys, the sink apart: (N, D_in, *keys shape)."""
        return self.boundary_rule.values(view, self.border)

    def head_matrices(self) -> tuple[Tensor, Tensor]:
        """Every head's W_val, (H, G, D_in / G, D_h), and W_out, (H, G, D_h, D_out / G): views."""
        return _by_head(self.value), _by_head(self.output)

    def mixing(self, dtype: torch.dtype) -> Tensor:
        """W_val^h W_out^h in the given dtype: (H, G, D_in / G, D_out / G).

        Exact when either factor is the identity, as the construction has it; and then no product
        is formed, unless its gradient is wanted: it is a view of the other factor.
        """
        return _by_head(self._mixing(dtype))

    def _mixing(self, dtype: torch.dtype) -> Tensor:
        """`mixing` as the factors are stored: (G, D_out / G, D_in / G, H)."""
        value, output = self.value, self.output
        trained = torch.is_grad_enabled() and (value.requires_grad or output.requires_grad)
        if not (trained or self._has_no_values):
            if _is_identity(value):
                return output.to(dtype)
            if _is_identity(output):
                return value.to(dtype)
        product = _by_head(value.to(dtype)) @ _by_head(output.to(dtype))
        return product.permute(1, 3, 2, 0)

    def head_mixing(self, view: View, dtype: torch.dtype) -> Tensor:
        """What each head does with what it sees on given lattices: `mixing`, times its gain."""
        mixing = self.mixing(dtype)
        if not is_mixing(self.encoding):
            return mixing
        gains = self.encoding.gains(self._shifts(), self.boundary_rule.keys(view))
        exact = _position_dtype(self.value.device)
        gains = gains.to(mixing.device, exact).reshape(-1, 1, 1, 1)
        return (mixing.to(exact) * gains).to(dtype)

    def has_live_content(self) -> bool:
        """Whether any of the three content terms can be other than zero, or is being trained.

        Traced code, and the meta device, cannot look at values and take them to be live.
        """
        if self._has_no_values:
            return True
        for name in self.content:
            parameter = getattr(self, name)
            if parameter.requires_grad or parameter.count_nonzero().item():
                return True
        return False

    def shares_structure(self) -> bool:
        """Whether the heads differ in shift and matrices alone, their shifts on the kernel's grid.

        Traced code takes the answer of the last call that was not traced.
        """
        if not self._has_no_values:
            key, shift = self.positional_key, self.positional_shift
            self._shared = (
                not (key.requires_grad or shift.requires_grad or self.has_live_content())
                and _are_identities(key)
                and (self._is_in_order() or self._is_on_grid())
            )
        return self._shared

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """The kernel that the heads make, as torch's convolution takes it, without its bias.

        (D_out, D_in / G, *kernel size). Heads of one shift add up, and a tap that no head attends
        to has none. Where one factor is the identity and the heads are in the order of the taps, as
        the construction has it, this is a view of the other factor, unless its gradient is wanted.
        Only for a layer that shares its structure.
        """
        mixing = self._mixing(dtype)
        size = self.geometry.kernel_size
        if self._has_no_values or not self._is_in_order():
            strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
            tap = (self._taps() * self.positional_shift.new_tensor(strides)).sum(dim=-1).long()
            none = mixing.new_zeros(*mixing.shape[:3], self.geometry.taps)
            mixing = none.index_add(3, tap, mixing)
        groups, outputs, inputs, _ = mixing.shape
        return mixing.reshape(groups * outputs, inputs, *size)

    def _is_in_order(self) -> bool:
        """Whether head h attends to tap h, as the construction has it."""
        return self.positional_shift.tolist() == offsets_in_order(self.geometry)

    def _is_on_grid(self) -> bool:
        """Whether every head attends to one of the taps."""
        taps, size = self._taps(), self.positional_shift.new_tensor(self.geometry.kernel_size)
        return bool(((taps == taps.round()) & (taps >= 0) & (taps < size)).all())

    def _taps(self) -> Tensor:
        """Each head's shift as a multi-index of the kernel, (H, d)."""
        before = self.positional_shift.new_tensor(self.geometry.before)
        dilation = self.positional_shift.new_tensor(self.geometry.dilation)
        return (self.positional_shift + before) / dilation

    def extra_repr(self) -> str:
        """Describe the layer as torch's own modules do."""
        sharpness = "saturated" if self.positional_sharpness is None else f"{self.sharpness:g}"
        if is_mixing(self.encoding):
            sharpness = "none"
        return (
            f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, "
            f"groups={self.groups}, encoding={self.encoding}, normaliser={self.normaliser}, "
            f"sharpness={sharpness}, border={self.border.name}, boundary={self.boundary}, "
            f"evaluation={self.evaluation}"
        )

    def _checked_spatial_shape(self, x: Tensor) -> tuple[int, ...]:
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; accepted: a torch.Tensor")
        spatial_shape = checked_spatial_shape(x, self.in_channels, self.geometry.dimension)
        own = self.value
        if x.dtype != own.dtype:
            low = {torch.float16, torch.bfloat16, torch.float32}
            if not (_is_autocast(x.device.type) and {x.dtype, own.dtype} <= low):
                raise ValueError(f"x has dtype {x.dtype}; accepted: {own.dtype}, the layer's")
        if x.device != own.device:
            raise ValueError(f"x is on {x.device}; accepted: {own.device}, the layer's device")
        return spatial_shape

    def _geometry(
        self, spatial_shape: tuple[int, ...], output_size: Sequence[int] | None
    ) -> Geometry:
        if len(spatial_shape) != self.geometry.dimension:
            raise ValueError(
                f"spatial_shape is {spatial_shape}; accepted: {self.geometry.dimension} sizes"
            )
        if output_size is None:
            return self.geometry
        return self.geometry.with_output_size(spatial_shape, output_size)

    def _evaluated(self, image: Tensor, geometry: Geometry) -> Tensor:
        apart = self.in_channels is None
        view = self._view(image.flatten(0, 1).unsqueeze(1) if apart else image, geometry)
        y = self._chosen_evaluation(view)(self, view)
        return y.reshape(*image.shape[:2], *y.shape[2:]) if apart else y

    def _view(self, image: Tensor, geometry: Geometry) -> View:
        view = View.of(image, geometry)
        check_reach(self.border, view.pixels, view.targets)
        return view

    def _chosen_evaluation(self, view: View | None = None) -> Evaluation:
        """The first evaluation that applies, to an input if there is one; the last one must."""
        objection = None
        for evaluation in self._evaluations:
            objection = evaluation.objection(self)
            if objection is None and view is not None:
                objection = evaluation.limit(self, view)
            if objection is None:
                return evaluation
        raise ValueError(
            f"evaluation {self._evaluations[-1].name!r} does not apply: {objection}; accepted: "
            "'dense' or 'auto'"
        )

    def _shifts(self) -> Tensor:
        """The heads' shifts, (H, d), in the format that positions are computed in."""
        return self.positional_shift.detach().to(_position_dtype(self.value.device))

    def gap(self, keys: Lattice) -> float:
        """The gap of the heads' shifts on a lattice of keys, in units of the encoding.

        Raises:
            ValueError: the encoding cannot select the shifts there.
        """
        if torch.compiler.is_compiling():
            return self._gap(*keys.constants)
        return self.encoding.gap(self._shifts(), keys)

    def _gap(self, *keys: tuple[int, ...]) -> float:
        """The gap: a constant of traced code, as the lattice is."""
        return self.encoding.gap(self._shifts(), Lattice(*keys))

    # As `torch.compiler.assume_constant_result` does it, which would import the whole compiler.
    _gap._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _position_scores(self, view: View) -> Tensor:
        """v^T Ŵ_key^T r_δ, centred: (H, queries, keys and the sink) in the accumulator format.

        A head's score at its own shift is 0; for a shift-invariant normaliser, each row's highest.
        """
        gap = self.gap(self.boundary_rule.keys(view))
        # The scores of heads that mix are what they are: no gap is to be widened.
        mixes = is_mixing(self.encoding)
        scale = 1.0 if mixes else self.sharpness_in(view.image.dtype) / gap
        heads = []
        position = _position_dtype(self.value.device)
        below_targets = rows_below_targets(
            self.encoding,
            self.boundary_rule.keys(view),
            view.queries,
            self.positional_shift.to(position),
            self.positional_key.to(position),
        )
        for rows in below_targets:
            if self.has_sink:
                rows = F.pad(rows, (0, 1), value=-SINK_HEIGHT * gap)
            if getattr(self.normaliser, "shift_invariant", False):
                # Far from the image all scores of a row are large: what is left is rounded less.
                rows = rows - rows.detach().amax(dim=-1, keepdim=True)
            # The scale comes last: what it multiplies is an exact integer (quadratic encoding).
            rows = rows * scale
            heads.append(rows.to(accumulator(view.image.dtype)))
        return torch.stack(heads)

    def _content_scores(self, view: View) -> Tensor:
        """The three terms that depend on the input: (N, H, queries, keys)."""
        dtype = accumulator(self.dtype)
        keys = self.boundary_rule.keys(view)
        # A query beyond the image has no content.
        at_queries = _tokens(padded(view.image, view.pixels, view.queries, Zeros()).to(dtype))
        at_keys = _tokens(self.values(view).to(dtype))
        query = at_queries @ self.query.to(dtype)  # (N, H, Q, D_k)
        key = at_keys @ self.key.to(dtype)  # (N, H, K, D_k)
        content_content = query @ key.transpose(-1, -2)
        content_bias = key @ self.content_bias.to(dtype).unsqueeze(-1)  # (N, H, K, 1)
        absolute = getattr(self.encoding, "absolute", False)
        places = keys if absolute else displacements(keys, view.queries)
        features, _ = self.encoding.encode(
            places.positions(self.value.device).to(self._shifts().dtype), self._shifts(), keys
        )
        position_keys = features.to(dtype) @ self.positional_key.to(dtype)  # (H, K or M, D_k)
        content_position = query @ position_keys.transpose(-1, -2)  # (N, H, Q, K or M)
        if not absolute:
            content_position = own_row(content_position, keys, view.queries)
        return content_content + content_position + content_bias.transpose(-1, -2)

    @contextlib.contextmanager
    def _without_autocast(self, device_type: str) -> Iterator[torch.dtype | None]:
        """Switch autocast off; yields the dtype that it wants of this layer, or None.

        As for a convolution of torch's, float64 is not its business.
        """
        if not _is_autocast(device_type):
            yield None
            return
        wanted = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            yield None if self.dtype == torch.float64 else wanted

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> MultiHeadSelfAttention:
        """Move the layer; positional parameters follow to a device, never to another dtype."""
        parameters = [getattr(self, name) for name in self.positional]
        kept = [t for p in parameters if p is not None for t in (p, p.grad)]

        def moved(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype != tensor.dtype and any(tensor is t for t in kept):
                return tensor.to(applied.device)
            return applied

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def _is_autocast(device_type: str) -> bool:
    """Whether autocast is on; the meta device has none."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _position_dtype(device: torch.device | str | None) -> torch.dtype:
    """float64, in which integers are exact to 2^53, except where the device has none."""
    on_mps = device is not None and str(device).startswith("mps")
    return torch.float32 if on_mps else torch.float64


def _by_head(factor: Tensor) -> Tensor:
    """The matrices (H, G, n, m) of a factor (G, m, n, H): a view."""
    return factor.permute(3, 0, 2, 1)


def _are_identities(matrices: Tensor) -> bool:
    """Whether all of (H, n, n) are the identity; small ones are compared as plain numbers."""
    n = matrices.shape[-1]
    if matrices.numel() > 4096:
        return torch.equal(matrices, torch.eye(n).to(matrices).expand_as(matrices))
    return bool(matrices.tolist() == _identities(n, len(matrices)))


@lru_cache(maxsize=64)
def _identities(n: int, count: int) -> list[list[list[float]]]:
    """Identities as plain numbers, not to be changed."""
    return [[[float(i == j) for j in range(n)] for i in range(n)]] * count


def _is_identity(factor: Tensor) -> bool:
    """Whether the matrices of a factor (G, m, n, H) are the identity; reads one that is, once.

    First its diagonal, where a kernel hardly has ones alone. Without its last entry, an n x n
    matrix is n - 1 rows of n + 1 entries, of which the first is on the diagonal. The others are
    zeros if the largest of their bytes is, which vector units find at the speed of memory.
    """
    groups, m, n, _ = factor.shape
    if n != m or not factor.numel():
        return n == m
    least, most = factor.diagonal(dim1=1, dim2=2).aminmax()
    if not least.item() == 1 == most.item():
        return False
    if n == 1:
        return True
    entries = factor.contiguous().view(torch.uint8)
    size = entries.shape[3]
    beside = entries.as_strided(
        (groups, n - 1, n * size),
        (n * n * size, (n + 1) * size, 1),
        entries.storage_offset() + size,
    )
    return not beside.amax().item()


def _tokens(image: Tensor) -> Tensor:
    """(N, C, *spatial) as (N, 1, tokens, C), the same for every head."""
    return image.flatten(2).transpose(1, 2).unsqueeze(1)
