"""Tests of `constructions.layer`."""
