"""Tests of `constructions.geometry`."""
