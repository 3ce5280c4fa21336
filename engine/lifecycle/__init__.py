"""A request's life in the engine: intake, output tracking, parallel sampling and statistics.

Read `intake.py` first, then `output_tracker.py`. This package never touches tensors.
"""
