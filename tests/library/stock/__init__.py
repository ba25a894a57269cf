"""Tests of `constructions.stock`, for what torch alone is needed."""
