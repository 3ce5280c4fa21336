"""Turns a model's name into a model in memory: finds files, converts GGUF, reads weights.

Read `loading.py` first. The only steps that this package runs are those of a self-check.
"""
