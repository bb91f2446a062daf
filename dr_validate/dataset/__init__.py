"""Test collections: a module per form, `beir`, `msmarco`, `tevatron`, `hub` (with `hub_parts`), `ir_datasets`, `dpr` (with
`answers`), `pydoc` (with `docstrings`), and `suite`, several of them.

`build`: from parts to a checked TestSet; `read`, `records`: rows of files by the names of columns; `judge`: queries and
judgements; `corpus`, `convert`: documents on disk; `locate`, `remote`, `manifest`, `digests`: files.
"""
