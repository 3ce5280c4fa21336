"""Getting jobs into Redis and reading them back: connections, stores, and reads for clients.

Read `async_store.py` first (`store.py` is generated from it), then `job_store.py`.
This package never waits for a job to end; `watch` does.
"""
