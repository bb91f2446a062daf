"""What is kept of checkpoints: `checkpoints` (verified copies), `embeddings` (their vectors, in `vector_file`s).

`leased_cache`: folders that nobody removes while they are in use.
"""
