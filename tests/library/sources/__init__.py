"""Tests of `constructions.sources`."""
