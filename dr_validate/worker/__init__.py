"""The process that holds the device.

`main`: its requests and answers; `pipeline`: the story of one checkpoint, and of collections that share one; `samples`: what is
ranked, and the full-corpus rankings that are kept; `encoding`: a checkpoint at hand, and the token cache; `estimates`: from a
ranking to corrected metrics. Files for others to read: `ledger/per_query`.
"""
