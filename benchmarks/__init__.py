"""What attention costs beside a convolution, and beside other attention: `python -m benchmarks`."""
