"""Tests of `constructions.lowering`."""
