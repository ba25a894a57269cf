"""Tests of `constructions.evaluation`."""
