"""The worker: Celery brings jobs, the engine runs them, job records in Redis connect the two.

Read `jobs/runtime.py` first, then `consumer/pool.py`. This folder never computes on tensors; only
the engine process imports torch.
"""
