"""Tests of `constructions.heads`."""
