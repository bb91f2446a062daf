"""The process that polls, chooses, records and delivers; no torch and no faiss in it.

`loop`: the only loop and the only clock; `polling`: what exists, and copies of it; `schedule`, `work_queue`: what is next;
`attempts`: one attempt and its books; `worker_process`, `worker_pool`: the worker, or several, seen from here; `delivery`:
Reports to trackers; `lock`: one watcher for each spec, and what `task=status` shows of it.
"""
