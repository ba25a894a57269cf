"""Normalisers: from the scores of the keys to the weights of their values."""

from __future__ import annotations

from collections.abc import Mapping

from constructions.normalisers.gates import Relu, Sigmoid
from constructions.normalisers.protocol import EXP_ERROR, Normaliser
from constructions.normalisers.quotients import Entmax, Softmax, Top1

__all__ = [
    "EXP_ERROR",
    "NORMALISERS",
    "Entmax",
    "Normaliser",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Top1",
]

NORMALISERS: Mapping[str, Normaliser] = {
    "softmax": Softmax(),
    "sparsemax": Entmax(2.0),
    "entmax15": Entmax(1.5),
    "top1": Top1(),
    "relu": Relu(),
    "sigmoid": Sigmoid(),
}
