"""Tables: the soft padding of heads whose score is any function of key minus query.

P is one matrix over all keys, not a product over axes: what such a head costs is its definition,
and what it saves is the scores. Theorem: `positional_heads_are_convolutions`.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.certificate.rounding import gamma
from constructions.encodings import Encoding
from constructions.formats import DOUBLE, unit_roundoff
from constructions.geometry.lattice import Lattice, displacements, spread
from constructions.layer.scores import below_peaks
from constructions.layer.soft_padding import Banded, SoftPadding, Span
from constructions.lowering.bands import LOWEST
from constructions.tracing import is_traced


@dataclass(frozen=True)
class WholePadding(SoftPadding):
    """P as one matrix from all keys to all targets.

    Args:
        shape: of the targets.
    """

    shape: tuple[int, ...] = ()

    def __call__(self, values: Tensor) -> Tensor:
        """P applied to (N, C, *keys.shape): (N, C, *targets.shape), summed in the values' dtype."""
        (factor,) = self.factors
        seen = factor.cast(values.dtype)(values.flatten(2), 2)
        seen = seen.reshape(*values.shape[:2], *self.shape)
        return seen if self.kept is None else seen * self.kept.to(values.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> WholePadding:
        """The same elsewhere or in another format."""
        moved = super().to(device, dtype)
        return WholePadding(moved.factors, moved.kept, self.shape)


@dataclass(frozen=True, eq=False)
class Tabled:
    """Scores as a table by displacement; two heads share P only where they share the object.

    Args:
        sink: the score of the sink, or None.
    """

    sink: float | None

    @abstractmethod
    def table(self, box: Lattice, keys: Lattice) -> Tensor:
        """The score at every displacement of a box, key minus target, (M,), float64.

        Raises:
            ValueError: there are displacements that it has no entry for.
        """

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""
        return self.sink is not None

    @property
    def precision(self) -> None:
        """None: its scores need not be squares."""
        return None

    def width(self, axis: int, keys: Lattice, tolerance: float) -> int:
        """All keys."""
        return keys.shape[axis] - 1

    def spans(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> list[Span]:
        """On the first axis all targets at once, on the others nothing more."""
        return [] if axis else [Span((0, targets.size), (0, keys.shape[0]))]

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> SoftPadding:
        """P, in float64 on the CPU."""
        rows = spread(self.table(displacements(keys, targets), keys), keys, targets)
        whole = Span((0, targets.size), (0, keys.size))
        factor = Banded((whole,), keys.size, (rows.softmax(dim=-1),))
        kept = None
        if self.sink is not None:
            kept = torch.sigmoid(rows.logsumexp(dim=-1) - self.sink).reshape(targets.shape)
        return WholePadding((factor,), kept, targets.shape)

    def mass_outside(self, keys: Lattice, targets: Lattice, tolerance: float) -> Tensor:
        """None, as there are no windows."""
        return torch.zeros(targets.shape, dtype=DOUBLE)

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """Three roundings of a score that counts, and of the largest one."""
        table = self.table(self._met(keys, queries), keys)
        seen = table[table > -torch.inf]  # a masked key weighs exactly 0
        largest = float(seen.abs().max()) + 2 * abs(self.sink or 0.0)
        return 8 * unit_roundoff(DOUBLE) * (LOWEST + largest)

    def _met(self, keys: Lattice, queries: Lattice) -> Lattice:
        """All displacements, key minus target, that a row may ask for."""
        return displacements(keys, queries)


@dataclass(frozen=True, eq=False)
class Stored(Tabled):
    """A table that is given, for a grid of keys.

    Args:
        entries: the scores, row-major over `box`, float64; -inf where a mask is.
        box: the displacements that have one.
    """

    entries: Tensor
    box: Lattice

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.entries.numpy().tobytes()).hexdigest()
        return f"Stored(sink={self.sink}, box={self.box}, entries={digest})"

    def table(self, box: Lattice, keys: Lattice) -> Tensor:
        """The entries of the box."""
        lows = zip(self.box.origin, box.origin, strict=True)
        highs = zip(box.last, self.box.last, strict=True)
        if not all(low <= high for pairs in (lows, highs) for low, high in pairs):
            raise ValueError(
                f"x asks for displacements from {box.origin} to {box.last}, and the layer's table "
                f"has those from {self.box.origin} to {self.box.last}; accepted: the grid that it "
                "was lowered for, or a smaller one"
            )
        places: tuple[slice, ...] = tuple(
            slice(low - first, low - first + size)
            for low, first, size in zip(box.origin, self.box.origin, box.shape, strict=True)
        )
        return self.entries.reshape(self.box.shape)[places].flatten()


@dataclass(frozen=True, eq=False)
class OfEncoding(Tabled):
    """The scores of one head by its encoding.

    Args:
        encoding: of the layer, of displacements.
        shifts: of all heads, (H, d).
        head: its number.
        positional_key: its own, (D_p, D_p); None for the identity.
        sharpness: the gap in score.
        origin: what is added to key minus target for key minus query.
    """

    encoding: Encoding
    shifts: Tensor
    head: int
    positional_key: Tensor | None
    sharpness: float
    origin: tuple[int, ...]

    def __repr__(self) -> str:
        numbers = [self.shifts, *([] if self.positional_key is None else [self.positional_key])]
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in numbers)).hexdigest()
        told = f"sharpness={self.sharpness}, origin={self.origin}, numbers={digest}"
        return f"OfEncoding(sink={self.sink}, {self.encoding}, head={self.head}, {told})"

    def table(self, box: Lattice, keys: Lattice) -> Tensor:
        """Scores below that at the head's own shift."""
        if is_traced():
            raise ValueError(
                f"layer was lowered through tables of {self.encoding}, which traced code cannot "
                "make; accepted: a call outside of torch.compile and torch.export"
            )
        points = box.positions().to(DOUBLE) + torch.tensor(self.origin, dtype=DOUBLE)
        key = None
        if self.positional_key is not None:
            key = self.positional_key.expand(len(self.shifts), -1, -1)
        below = below_peaks(self.encoding, points, self.shifts, keys, key)[self.head]
        return below * (self.sharpness / self.encoding.gap(self.shifts, keys))

    def _met(self, keys: Lattice, queries: Lattice) -> Lattice:
        """Those of targets as far from queries as any head's."""
        box = displacements(keys, queries)
        far = [int(n) for n in self.shifts.abs().amax(0).ceil()]
        shape = tuple(n + 2 * f for n, f in zip(box.shape, far, strict=True))
        origin = tuple(o - f for o, f in zip(box.origin, far, strict=True))
        return Lattice(shape, box.spacing, origin)

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """The encoding's own, that of a product with a positional key, and as of any table."""
        own = super().score_error(keys, queries)
        own += self.sharpness * self.encoding.relative_score_error(self.shifts, keys)
        if self.positional_key is None:
            return own
        points = self._met(keys, queries).positions().to(DOUBLE)
        points = points + torch.tensor(self.origin, dtype=DOUBLE)
        features, named = self.encoding.encode(torch.cat([points, self.shifts]), self.shifts, keys)
        size = (self.positional_key.abs() @ named[self.head].abs()) @ features.abs().T
        unit = self.sharpness / self.encoding.gap(self.shifts, keys)
        return own + 4 * gamma(2 * len(self.positional_key) + 4, DOUBLE) * float(size.max()) * unit
