"""What a caller may submit: the job document, its limits, and the checks that refuse it by name.

Read `document.py` first. This package does no input or output: it never talks to Redis.
"""
