"""What is kept of checkpoints: `checkpoints` (verified copies, and vectors, in folders that nobody removes while in use),
`embeddings` (the vectors of one, in `vector_file`s, each encoded once by whoever holds its `embeddings.RangeLocks`).

`best`: the best checkpoint, for `store.keep_best`.
"""
