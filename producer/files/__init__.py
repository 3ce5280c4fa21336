"""Files of records: read in every common format, and written as tables. No broker.

Read `source.py` first. Only the command line and `bulk` import this package; the clients never do.
"""
