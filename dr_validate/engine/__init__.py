"""Encode and search: `local` on one device, `ray` on many.

`slices`: the parts of a ranking, each through the model into a running top-k, merged, and saved for when it is interrupted;
`ray`, `ray_workers`, `ray_ranking`: a cluster, who is there and what runs there, who does what.
"""
