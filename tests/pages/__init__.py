"""Pages that are generated from what was run, and the tests that hold them to it."""
