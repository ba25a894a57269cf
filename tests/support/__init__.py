"""What tests share: the oracle, the strategies, the ledger, the layout."""
