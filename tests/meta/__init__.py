"""Tests of the tests: the oracle, the strategies, the ledger, the layout."""
