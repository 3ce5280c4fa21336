"""`batchmill bench`: the engine alone, and jobs through the queue.

Read `workloads.py` first. No other package imports this one, except the command line.
"""
