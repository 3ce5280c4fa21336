"""Beam search: the likeliest outputs of a job, found by requests of one token each.

Read `plan.py` first; `beams.py` is the search itself.
"""
