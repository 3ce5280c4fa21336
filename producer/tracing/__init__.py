"""Traces: the W3C context that a job carries, and OpenTelemetry's spans of sending it.

Read `traceparent.py` first. Without `BATCHMILL_TRACES` nothing here imports OpenTelemetry; the
context of a job is carried all the same. The spans of running a job are in `worker/tracing`.
"""
