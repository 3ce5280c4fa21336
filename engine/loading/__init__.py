"""From a model's name to a model in memory: finding files, converting GGUF, reading weights.

Read `loading.py` first. This package never computes a step, except for a self-check at load.
"""
