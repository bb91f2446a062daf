"""Encode and search: `local` on one device, `ray` on many.

`local`: also slices, each through the model into a running top-k (`index/topk`), and saved for when it is interrupted; for Ray
`ray`, `ray_workers`, `ray_ranking`: a cluster, who is there and what runs there, who does what, and its parts merged.
"""
