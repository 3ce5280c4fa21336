"""How jobs get into Redis and how they are read back: connections, stores and record readers.

Read `job_store.py` first. This package never waits for a job to end; `watch` does.
"""
