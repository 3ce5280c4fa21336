"""Spans of running jobs. Read `attempt_spans.py` first.

`docs/traces.md` shows the tree that they make. Without `BATCHMILL_TRACES` nothing here imports
OpenTelemetry, and the parts of a worker hold objects that do nothing.
"""
