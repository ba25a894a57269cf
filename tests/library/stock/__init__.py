"""Tests of `constructions.stock`."""
