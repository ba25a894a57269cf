"""The paper's experiments in small: what attention learns from digits, beside a convolution.

`python -m experiments` runs them on the CPU, with progress, in minutes; `--write` keeps the record.
The tests hold the code, and no accuracy.
"""
