"""Encode and search: `local` on one device, `ray` on many.

`slices`, `share`: slices of texts through the model into a running top-k; `progress`: the file by which an interrupted one
resumes; `ray`, `ray_workers`, `ray_ranking`, `ray_worker`: a cluster, who is there, who does what, what runs there; `merge`.
"""
