"""Search: `flat` (faiss), `torch`, `factory` (any string of faiss.index_factory).

`topk`: the one running top-k behind all of them.
"""
