"""Execution of steps on a device: the pipeline, decode graphs, warm-up and memory sizing.

Read `step_pipeline.py` first. This package never decides what a step computes; `scheduling` does.
"""
