"""`batchmill demo`: real jobs through the whole system, with checked webhooks.

Read `run.py` first. No other package imports this one, except the command line.
"""
