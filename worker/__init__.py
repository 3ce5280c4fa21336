"""The worker side of batchmill: Celery in front, the engine behind, job records in between.

Read `jobs/runtime.py` first, then `consumer/pool.py`. This folder never computes on tensors; only
the engine's own process imports torch.
"""
