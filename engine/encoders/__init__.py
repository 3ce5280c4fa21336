"""Encoders: models that read a whole text in both directions, and only embed and score.

Read `encoder.py` first. They run in the same engine as the decoders, on whole texts and without a
KV cache.
"""
