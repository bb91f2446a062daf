"""`task=report`: one page from the ledger.

`page`, `gather`: from the ledger to HTML; `verdict`: sentences, and what trackers show; `words`: the numbers in them;
`trainings`: one over another; `charts`, `tables`: pictures, tables and facts, made of `markup`.
"""
