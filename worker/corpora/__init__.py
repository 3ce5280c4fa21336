"""Draft corpora of a worker: what finished jobs teach, and what its engine drafts from.

Read `corpus_keeper.py` first.
"""
