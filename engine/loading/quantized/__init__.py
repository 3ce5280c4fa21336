"""Reads checkpoints whose weights are stored in a quantized format, by unpacking them.

Read `checkpoint.py` first: it gives the loader dense tensors under their ordinary names.
`formats.py` chooses the format by config.json, and each other file knows one format.
"""
