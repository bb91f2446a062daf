"""Encode and search: `local` on one device, `ray` on many.

`slices`, `share`: slices of texts through the model into a running top-k; `local`: all of them on one device; `ray`,
`ray_workers`, `ray_ranking`, `ray_worker`: a cluster, who is there, who does what, and what runs there; `merge`; `progress`:
the file by which an interrupted ranking resumes.
"""
