"""Theorems on layers that nobody here wrote."""
