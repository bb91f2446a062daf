"""`task=report`: one page from the ledger.

`page`, `gather`: from the ledger to HTML; `verdict`, `words`: sentences; `trainings`: one over another; `charts`, `plot`:
pictures; `tables`: tables and facts; `markup`: HTML. `findings`: what trackers show of it.
"""
