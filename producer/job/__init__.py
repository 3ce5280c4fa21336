"""The job document: its fields, its limits, and the checks that refuse a field by name.

Read `document.py` first. This package does no input or output: it never talks to Redis.
"""
