"""Evaluations: ways of computing the same layer."""

from __future__ import annotations

from collections.abc import Mapping

from constructions.evaluation.dense import Dense
from constructions.evaluation.factored import Factored
from constructions.evaluation.flex import Flex
from constructions.evaluation.fused import Fused
from constructions.layer.attention import Evaluation

__all__ = ["AUTO", "EVALUATIONS", "Dense", "Factored", "Flex", "Fused"]

EVALUATIONS: Mapping[str, Evaluation] = {e.name: e for e in (Factored(), Fused(), Flex(), Dense())}

AUTO: tuple[Evaluation, ...] = (Factored(), Fused(), Dense())
"""The ways of which "auto" takes the first. FlexAttention is compiled, and has to be asked for."""
