"""How well a sample stands in for the full corpus: `against_full`."""
