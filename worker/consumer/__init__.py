"""Celery: the app, the pool, the task, the transport, and how a job's end is reported to Celery.

Read `pool.py` first. This package decides nothing about a job; `jobs` does.
"""
