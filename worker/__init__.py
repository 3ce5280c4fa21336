"""The worker side of batchmill: Celery in front, the engine behind, job records in between."""
