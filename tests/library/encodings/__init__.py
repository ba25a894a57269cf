"""Tests of the encodings as a library."""
