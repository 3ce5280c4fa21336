"""Models that transformers computes, on our paged KV cache and with our attention.

Read `model.py` first. The native decoder does not use this package.
"""
