"""What is kept of checkpoints: `checkpoints` (verified copies), `embeddings` (their vectors, in `vector_file`s, each encoded
once by whoever holds its `embeddings.RangeLocks`).

`leased_cache`: folders that nobody removes while they are in use; `best`: the best checkpoint, for `store.keep_best`.
"""
