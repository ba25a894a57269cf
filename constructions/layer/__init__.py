"""The layer: the paper's multi-head self-attention, its scores, and what its heads share."""
