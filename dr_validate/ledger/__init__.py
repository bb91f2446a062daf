"""What has been done, which is never done again: one SQLite file, and files beside it.

`ledger`, `database`: the file; `report_json`: a Report as JSON; `revised`: values as later Reports see them;
`means`: over the collections of a suite; `per_query`: values by query; `findings`: what trackers are told of it; `made`: how
results were made, in words.
"""
