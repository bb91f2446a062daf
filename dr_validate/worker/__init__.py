"""The process that holds the device.

`main`: its requests and answers; `suite`: collections that share a checkpoint; `pipeline`: the story of one checkpoint;
`samples`: what is ranked; `encoding`: a checkpoint at hand, and the token cache; `estimates`: from a ranking to corrected
metrics; `results`: files beside the ledger (read by `ledger/per_query`), and full-corpus rankings.
"""
