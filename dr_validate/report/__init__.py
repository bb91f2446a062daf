"""`task=report`: one page from the ledger.

`write`, `gather`, `page`: from the ledger to HTML; `verdict`, `words`: sentences; `comparison`: strategies side by
side; `trainings`: one over another; `curves`, `costs`, `plot`, `scales`: charts; `tables`, `grid`, `queries`, `making`:
tables; `markup`; `for_trackers`: verdict and tables for those
who never open it.
"""
