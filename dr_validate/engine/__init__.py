"""Encode and search: `local`, on this machine.

`slices`, `texts`, `share`: slices of texts through the model into a running top-k; `alone`: on one device; `shared`,
`merge`: on several; `progress`: the file by which an interrupted ranking resumes.
"""
