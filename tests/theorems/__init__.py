"""A file for each theorem: `test_<slug>.py`."""
