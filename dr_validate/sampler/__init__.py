"""Which documents are encoded: `full`, `random`, `run_pool`, `stratified`.

`design`: permanent random numbers and budgets; `bm25`, `runs`, `named_run`: runs, and many of them to one order.
"""
