"""Explanations of an output: how sure it was, what else it could have been, and what it rests on.

Read `plan.py` first. Each part is a file: `confidence.py`, `alternatives.py`, `attribution.py`
(with `segments.py` and `linear_fit.py`) and `uncertainty.py`.
"""
