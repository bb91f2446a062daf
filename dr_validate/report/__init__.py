"""`task=report`: one page from the ledger.

`page`, `gather`: from the ledger to HTML; `verdict`, `words`: sentences; `trainings`: one over another; `charts`, `plot`:
pictures; `tables`, `queries`, `making`: tables and facts; `markup`; `for_trackers`: both for those who never
open it.
"""
