"""Celery: the app, the pool, the task, the transport, and reporting a job's end to Celery.

Read `pool.py` first. This package decides nothing about a job; `jobs` does.
"""
