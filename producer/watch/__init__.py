"""Every wait: for the end of one job, for the ends of many, and for streamed output.

Read `async_one_job.py` first. A message on a channel only wakes a wait early: the record counts,
and it is read again at intervals. This package never writes.
"""
