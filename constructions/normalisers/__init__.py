"""Normalisers: from the scores of the keys to the weights of their values."""

from __future__ import annotations

from collections.abc import Mapping

from constructions.normalisers.base import EXP_ROUNDOFFS, Normaliser, NormaliserLike
from constructions.normalisers.completed import check_normaliser, complete_normaliser
from constructions.normalisers.gates import Relu, Sigmoid
from constructions.normalisers.quotients import Entmax, Softmax, Top1

__all__ = [
    "EXP_ROUNDOFFS",
    "IMPOSSIBLE_NORMALISERS",
    "NORMALISERS",
    "Entmax",
    "Normaliser",
    "NormaliserLike",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Top1",
    "check_normaliser",
    "complete_normaliser",
]

NORMALISERS: Mapping[str, Normaliser] = {
    "softmax": Softmax(),
    "sparsemax": Entmax(2.0),
    "entmax15": Entmax(1.5),
    "top1": Top1(),
    "relu": Relu(),
    "sigmoid": Sigmoid(),
}

_RANK = (
    "the weights of a head have a rank of at most its number of features, and a shift has the rank "
    "of the number of pixels that it moves (theorem "
    "`low_rank_attention_cannot_express_convolution`)"
)
IMPOSSIBLE_NORMALISERS: Mapping[str, str] = {
    "linear": f"attention that is linear in the features of its keys is low-rank: {_RANK}",
    "kernel": f"weights that are inner products of finitely many features are low-rank: {_RANK}",
    "low_rank": f"keys projected to fewer rows give low-rank weights: {_RANK}",
}
"""Names that `attention_from_conv` may meet as a normaliser, and why none is built for them."""
