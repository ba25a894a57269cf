"""Tests of `constructions.normalisers`."""
