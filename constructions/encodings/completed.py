"""The door for encodings: an object of the two methods is completed, and checked, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from constructions.encodings.base import Encoding, EncodingLike, Mixing
from constructions.geometry.lattice import Lattice
from constructions.statements import (
    FLAG,
    METHOD,
    Statement,
    check_statements,
    has_methods,
    stated,
)
from constructions.tracing import has_values

CONTRACT = ("encode", "gap")
OF_MIXING = ("heads", "coefficients", "gains")


def complete_encoding(given: object, argument: str = "encoding") -> Encoding:
    """The encoding that an object is, or that its methods make of it; what it states is checked.

    Args:
        given: an `Encoding`, which is returned itself; or an object of the two methods `encode` and
            `gap`, which may state any of the attributes of an `Encoding`, and have the methods of a
            `Mixing` if its heads mix (docs/your-own-encoding.md).
        argument: the name of the argument, for the message.

    Raises:
        TypeError: a method is missing, an attribute is of another type than that of an `Encoding`,
            or a public attribute is misspelt.
    """
    if not has_methods(given, CONTRACT):
        raise TypeError(
            f"{argument} is {given!r}; accepted: an object with the methods of Encoding, "
            f"{' and '.join(CONTRACT)}"
        )
    check_statements(argument, given, STATEMENTS, known=(*dir(Encoding), *OF_MIXING))
    return _complete(given)


def check_encoding(encoding: Encoding, shifts: Tensor, grid: Lattice) -> int:
    """Let an encoding answer for the shifts of a convolution, and hold it to its contract.

    Where values cannot be looked at, on the meta device, the shapes and dtypes alone are checked.

    Args:
        encoding: to be checked.
        shifts: the shifts of the heads, (H, d).
        grid: a lattice of keys.

    Returns:
        D_p, the number of its features.

    Raises:
        TypeError: `encode` does not return two tensors, or `gap` no number.
        ValueError: features and names are of other shapes, dtypes or devices than the contract
            says, the gap is not positive and finite, or the encoding refuses the shifts.
    """
    # One displacement more than there are shifts: no count of rows passes for the other.
    displacements = torch.cat([shifts, shifts[:1]])
    answer = encoding.encode(displacements, shifts, grid)
    two = isinstance(answer, tuple | list) and len(answer) == 2
    if not two or not all(isinstance(tensor, Tensor) for tensor in answer):
        raise TypeError(
            f"encoding is {encoding}, whose encode returns {_told(answer)}; accepted: a tuple of "
            "two tensors, features and names"
        )
    features, names = answer
    width = features.shape[-1] if features.dim() == 2 else None
    for what, tensor, rows in (("features", features, displacements), ("names", names, shifts)):
        if tensor.shape != (len(rows), width):
            raise ValueError(
                f"encoding is {encoding}, whose encode returns {what} of shape "
                f"{tuple(tensor.shape)} for {len(displacements)} displacements and {len(shifts)} "
                f"shifts; accepted: ({len(rows)}, D_p), with one D_p for features and names"
            )
        if tensor.dtype != rows.dtype or tensor.device != rows.device:
            raise ValueError(
                f"encoding is {encoding}, whose encode returns {what} of dtype {tensor.dtype} on "
                f"{tensor.device}; accepted: {rows.dtype} on {rows.device}, as it is given"
            )
    if has_values(shifts):
        gap: object = encoding.gap(shifts, grid)
        if isinstance(gap, bool) or not isinstance(gap, Real):
            raise TypeError(
                f"encoding is {encoding}, whose gap is {_told(gap)}; accepted: a positive, finite "
                "float"
            )
        if not 0 < float(gap) < math.inf:
            raise ValueError(
                f"encoding is {encoding}, whose gap is {gap} on {grid}; accepted: a positive, "
                "finite float"
            )
    return features.shape[-1]


@dataclass(frozen=True, repr=False)
class CompletedEncoding(Encoding):
    """An object of the two methods, as an encoding: it says what the object says.

    What the object does not state has the default of `Encoding`. Two are equal if their objects
    are; its name is the object's own.

    Args:
        given: the object.
    """

    given: EncodingLike

    # The defaults are written out once more: for a property of `super()`, torch 2.13 takes, in code
    # that it traces, the property itself, which is true.

    def __repr__(self) -> str:
        return repr(self.given)

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """The object's."""
        return self.given.encode(displacements, shifts, grid)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The object's."""
        return self.given.gap(shifts, grid)

    @property
    def theorem(self) -> str | None:
        """The object's, or the default."""
        return stated(self.given, "theorem", None)

    @property
    def crowded(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "crowded", True)

    @property
    def absolute(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "absolute", False)

    @property
    def bounded_reach(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "bounded_reach", False)

    @property
    def everywhere(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "everywhere", False)

    @property
    def integer_differences(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "integer_differences", False)

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """The object's, completed, or the default."""
        none: Mapping[str, object] = {}
        borders = stated(self.given, "natural_borders", none)
        return {mode: self._part(encoding) for mode, encoding in borders.items()}

    def on_axis(self, axis: int) -> Encoding | None:
        """The object's, completed, or the default."""
        on_axis: Callable[[int], object] | None = stated(self.given, "on_axis", None)
        return None if on_axis is None else self._part(on_axis(axis))

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """The object's, or the default."""
        error: Callable[[Tensor, Lattice], float] | None = stated(self.given, "score_error", None)
        return 0.0 if error is None else float(error(shifts, grid))

    def _part(self, other: object) -> Encoding | None:
        """Another object that this one speaks of, completed; often it is this one."""
        if other is None:
            return None
        return self if other is self.given else _complete(other)


@dataclass(frozen=True, repr=False)
class CompletedMixing(CompletedEncoding, Mixing):
    """An object of the five methods of a `Mixing`, as one.

    Args:
        given: the object.
    """

    given: Mixing

    def heads(self, offsets: Tensor) -> Tensor:
        """The object's."""
        return self.given.heads(offsets)

    def coefficients(self, offsets: Tensor) -> Tensor:
        """The object's."""
        return self.given.coefficients(offsets)

    def gains(self, shifts: Tensor, keys: Lattice) -> Tensor:
        """The object's."""
        return self.given.gains(shifts, keys)


def _complete(given: object) -> Encoding:
    """The encoding that an object of the methods is; nothing is checked."""
    if isinstance(given, Encoding):
        return given
    if has_methods(given, OF_MIXING):
        return CompletedMixing(cast(Mixing, given))
    return CompletedEncoding(cast(EncodingLike, given))


def _are_borders(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(mode, str) and (encoding is None or has_methods(encoding, CONTRACT))
        for mode, encoding in value.items()
    )


def _told(value: object) -> str:
    """A value in a message; a tensor, or several, would be too long."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_told, value))}"
    return "a Tensor" if isinstance(value, Tensor) else repr(value)


STATEMENTS: Mapping[str, Statement] = {
    "theorem": Statement(
        "the slug of a theorem, or None", lambda value: value is None or isinstance(value, str)
    ),
    "crowded": FLAG,
    "absolute": FLAG,
    "bounded_reach": FLAG,
    "everywhere": FLAG,
    "integer_differences": FLAG,
    "natural_borders": Statement(
        "a mapping from names of padding modes to encodings or None", _are_borders
    ),
    "on_axis": METHOD,
    "score_error": METHOD,
}
"""What an encoding may state, each with its type: the attributes of `Encoding`."""
