"""Lowering: a positional layer as soft paddings and convolutions."""
