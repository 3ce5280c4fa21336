"""A request's life in the engine: intake, tracking, samples of one prompt, and statistics.

Read `intake.py` first, then `tracker.py`. This package never touches tensors.
"""
