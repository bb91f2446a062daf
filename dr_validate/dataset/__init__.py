"""Test collections: a module per form, `beir`, `msmarco`, `tevatron`, `hub`, `pydoc`.

`build`: from parts to a checked TestSet; `read`, `records`: rows of files by the names of columns; `judge`: queries and
judgements; `corpus`, `convert`: documents on disk; `locate`, `remote`, `manifest`, `digests`: files.
"""
