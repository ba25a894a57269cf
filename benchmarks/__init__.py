"""What dense attention costs beside the convolution; never a test that fails on time."""
