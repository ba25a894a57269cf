"""Tests of the package: a folder for each of its rooms, a file for each of its modules."""
