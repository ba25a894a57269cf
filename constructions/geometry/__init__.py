"""Geometry: lattices, padding modes, and where pixels, keys, queries and targets stand."""
