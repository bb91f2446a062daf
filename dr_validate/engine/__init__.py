"""Encode and search: `local` on one device, `ray` on many.

`slices`: the parts of a ranking, each through the model into a running top-k (`index/topk`), and saved for when it is
interrupted; for Ray also dealt and merged; `ray`, `ray_workers`, `ray_ranking`: a cluster, who is there and what runs there,
who does what.
"""
