"""A job's life in a worker, without Celery: claim, lease, checkpoints, end, and the sweep.

Read `runtime.py` first (it puts the parts together), then `record_writer.py`. One thread per duty.
`unusable_record.py` says what happens to a corrupt record.
"""
