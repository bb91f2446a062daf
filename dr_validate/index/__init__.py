"""Search: `flat` (faiss), `torch`, `factory` (any string of faiss.index_factory).

`running`: the one running top-k behind all of them; `keys`, `canonical`: its order.
"""
