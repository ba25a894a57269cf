"""Verification: theory and constructions held against each other and an independent oracle."""
