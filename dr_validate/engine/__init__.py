"""Encode and search: `local`, on this machine.

`slices`, `share`: slices of texts through the model into a running top-k; `local`: on one device; `shared`, `merge`: on
several; `progress`: the file by which an interrupted ranking resumes.
"""
