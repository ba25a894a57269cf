"""The door for normalisers: an object of the two methods is completed, and checked, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from constructions.formats import accumulator
from constructions.normalisers.base import Normaliser, NormaliserLike
from constructions.statements import (
    FLAG,
    METHOD,
    Statement,
    check_statements,
    has_methods,
    stated,
)

CONTRACT = ("__call__", "one_hot_gap")


def complete_normaliser(given: object, argument: str = "normaliser") -> Normaliser:
    """The normaliser that an object is, or that its methods make of it; what it states is checked.

    Args:
        given: a `Normaliser`, which is returned itself; or an object that is called on scores and
            has `one_hot_gap`, which may state any of the attributes of a `Normaliser`.
        argument: the name of the argument, for the message.

    Raises:
        TypeError: a method is missing, an attribute is of another type than that of a `Normaliser`,
            or a public attribute is misspelt.
    """
    if not has_methods(given, CONTRACT):
        raise TypeError(
            f"{argument} is {given!r}; accepted: an object with the methods of Normaliser, "
            f"{' and '.join(CONTRACT)}"
        )
    check_statements(argument, given, STATEMENTS, known=dir(Normaliser))
    return _complete(given)


def check_normaliser(
    normaliser: Normaliser, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> None:
    """Let a normaliser weigh a few scores of a layer of a dtype, and hold it to its contract.

    Raises:
        TypeError: it returns no tensor, or `one_hot_gap` no number.
        ValueError: the weights are of another shape or dtype than the scores, or the gap is not
            positive.
    """
    # Two heads, two queries, three keys: a head's own shift scores 0, and the others less.
    scores = torch.zeros(2, 2, 3, dtype=accumulator(dtype), device=device)
    scores[..., 1:] = -1
    weights: object = normaliser(scores)
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"normaliser is {normaliser}, which returns a {type(weights).__name__}; accepted: a "
            "tensor, of the shape and dtype of the scores"
        )
    if (weights.shape, weights.dtype) != (scores.shape, scores.dtype):
        raise ValueError(
            f"normaliser is {normaliser}, which returns weights of shape {tuple(weights.shape)} "
            f"and {weights.dtype} for scores of shape {tuple(scores.shape)} and {scores.dtype}; "
            "accepted: the shape and dtype of the scores"
        )
    gap: object = normaliser.one_hot_gap(dtype)
    if isinstance(gap, bool) or not isinstance(gap, Real):
        raise TypeError(
            f"normaliser is {normaliser}, whose one_hot_gap is a {type(gap).__name__}; accepted: a "
            "positive float, or inf"
        )
    if not float(gap) > 0:
        raise ValueError(
            f"normaliser is {normaliser}, whose one_hot_gap for {dtype} is {gap}; accepted: a "
            "positive float, or inf"
        )


@dataclass(frozen=True, repr=False)
class CompletedNormaliser(Normaliser):
    """An object of the two methods, as a normaliser: it says what the object says.

    What the object does not state has the default of `Normaliser`. Two are equal if their objects
    are; its name is the object's own.

    Args:
        given: the object.
    """

    given: NormaliserLike

    # The defaults are written out once more, as those of `CompletedEncoding`.

    def __repr__(self) -> str:
        return repr(self.given)

    def __call__(self, scores: Tensor) -> Tensor:
        """The object's."""
        return self.given(scores)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """The object's."""
        return self.given.one_hot_gap(dtype)

    @property
    def shift_invariant(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "shift_invariant", False)

    @property
    def vanishes(self) -> bool:
        """The object's, or the default."""
        return stated(self.given, "vanishes", False)

    def at(self, sharpness: float) -> Normaliser:
        """The object's, completed, or the default."""
        at: Callable[[float], object] | None = stated(self.given, "at", None)
        other = self.given if at is None else at(sharpness)
        return self if other is self.given else _complete(other)


def _complete(given: object) -> Normaliser:
    """The normaliser that an object of the methods is; nothing is checked."""
    if isinstance(given, Normaliser):
        return given
    return CompletedNormaliser(cast(NormaliserLike, given))


STATEMENTS: Mapping[str, Statement] = {"shift_invariant": FLAG, "vanishes": FLAG, "at": METHOD}
"""What a normaliser may state, each with its type: the attributes of `Normaliser`."""
