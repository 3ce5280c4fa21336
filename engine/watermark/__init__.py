"""Watermarks: which noise marks a text, and how a text with that noise is recognised.

Read `noise.py` first, then `detection.py`. Nothing here needs torch or a model.
"""
