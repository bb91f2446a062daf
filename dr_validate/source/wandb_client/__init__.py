"""What is asked of W&B.

`api` (questions), `http` (files, every byte checked), `versions` (what one holds), `project` (what a source asks and keeps).
"""
