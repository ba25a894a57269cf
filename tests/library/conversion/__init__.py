"""Tests of `constructions.conversion`."""
