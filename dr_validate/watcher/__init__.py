"""The process that polls, chooses, records and delivers; no torch and no faiss in it.

`loop`: the loop that decides; `polling`: what exists, and copies of it; `schedule`: what is next, and what was
deleted before anybody had a copy; `attempts`: one attempt and its books; `worker_process`, `worker_pool`: the worker, or
several, seen from here; `delivery`: Reports to trackers, and what is done for each new best; `lock`: one watcher for each spec,
and what `task=status` shows of it.

A worker dies with its watcher, however that ends. An attempt is counted for what a worker validates: one that dies idle, or
fails at what it ranks ahead, costs none.
"""
