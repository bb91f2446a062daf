"""Test collections: a module per form, `beir`, `msmarco`, `tevatron`, `hub`, `ir_datasets`, `dpr`, `pydoc`, and
`suite`, several of them.

`build`: from parts to a checked TestSet; `read`, `records`: rows of files by the names of columns; `corpus`: documents on
disk; `locate`, `storage`: files, here and at URLs, their digests, and folders made of them once.
"""
