"""What has been done, which is never done again: one SQLite file, and files beside it.

`ledger`, `database`: the file; `reports`: a Report as JSON, and values as later Reports see them; `means`: over the collections
of a suite; `per_query`: files beside it, values by query above all; `made`: how results were made, in words.
"""
