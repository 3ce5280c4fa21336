"""Every wait: for the end of one job, for the ends of many, and for streamed output.

Read `one_job.py` first. A notification only wakes a wait early: what counts is the record, which is
read again at intervals. This package never writes.
"""
