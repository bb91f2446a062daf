"""What is kept of checkpoints: `checkpoints` (verified copies), `embeddings` and `kept` (their vectors, in `vector_file`s).

`leased_cache`: folders that nobody removes while they are in use; `claims`: who encodes which documents right now;
`best`: where `store.keep_best` puts the best one.
"""
