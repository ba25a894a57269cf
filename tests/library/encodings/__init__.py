"""Tests of `constructions.encodings`."""
