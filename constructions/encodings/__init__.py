"""Encodings: what a relative position looks like to a head, and how a head names its shift."""

from collections.abc import Mapping

from constructions.encodings.absolute import Absolute
from constructions.encodings.base import (
    Encoding,
    EncodingLike,
    Mixing,
    farthest,
)
from constructions.encodings.circle import Circle
from constructions.encodings.completed import check_encoding, complete_encoding
from constructions.encodings.flattened import Flattened
from constructions.encodings.gaussian import Gaussian
from constructions.encodings.impossible import IMPOSSIBLE, Alibi
from constructions.encodings.mixtures import Mixtures
from constructions.encodings.periodic import Periodic
from constructions.encodings.quadratic import Quadratic
from constructions.encodings.rotary import Rotary, least_drop
from constructions.encodings.scalar import Scalar
from constructions.encodings.scored import Scored
from constructions.encodings.tables import BiasTable, RowColumn, T5Buckets
from constructions.encodings.window import Window
from constructions.geometry.lattice import Lattice

__all__ = [
    "ENCODINGS",
    "IMPOSSIBLE",
    "Absolute",
    "Alibi",
    "BiasTable",
    "Circle",
    "Encoding",
    "EncodingLike",
    "Flattened",
    "Gaussian",
    "Lattice",
    "Mixing",
    "Mixtures",
    "Periodic",
    "Quadratic",
    "Rotary",
    "RowColumn",
    "Scalar",
    "Scored",
    "T5Buckets",
    "Window",
    "check_encoding",
    "complete_encoding",
    "farthest",
    "least_drop",
]

ENCODINGS: Mapping[str, Encoding] = {
    "quadratic": Quadratic(),
    "absolute_quadratic": Absolute(Quadratic()),
    "gaussian": Gaussian(),
    "flattened": Flattened(),
    "circle": Circle(),
    "bias_table": BiasTable(),
    "row_column": RowColumn(),
    "t5": T5Buckets(),
    "rotary": Rotary(),
    "sinusoidal": Absolute(Rotary()),
    "periodic": Periodic(),
    "scalar": Scalar(),
    "alibi": Alibi(),
    "causal_alibi": Alibi(causal=True),
}
