"""Bulk runs: a file of prompts in, a file of results out, resumable after any crash.

Read `run.py` first. The output files are the only state of a run. Only the command line imports
this package; the clients never do.
"""
