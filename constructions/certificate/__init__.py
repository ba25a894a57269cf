"""Certificates: a layer held against the exact convolution, within derived bounds."""
