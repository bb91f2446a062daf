"""Which documents are encoded: `full`, `random`, `run_pool`, `stratified`.

`design`: permanent random numbers and budgets; `runs`: by name, read, and many of them to one order; `bm25`: one made here.
"""
