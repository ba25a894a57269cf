"""Tests of `constructions.certificate`."""
