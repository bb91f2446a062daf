"""`task=report`: one page from the ledger.

`write`, `gather`, `page`: from the ledger to HTML; `verdict`, `words`: sentences; `comparison`: a strategy against the full
corpus; `trainings`: one over another; `curves`, `costs`, `plot`, `scales`: charts; `tables`, `grid`, `queries`, `making`:
tables; `markup`; `findings`: for trackers.
"""
