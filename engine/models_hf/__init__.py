"""Any other causal language model of transformers, computed on our paged KV cache.

Read `model.py` first. Whoever works on the native decoder can ignore this package.
"""
