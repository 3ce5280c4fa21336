"""`batchmill bench chaos`: jobs under random faults, and whether every promise was kept.

Read `plan.py` first. No other package imports this one, except the command line.
"""
