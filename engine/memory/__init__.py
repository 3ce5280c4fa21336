"""Owns the paged KV cache, and measures how much memory the host and the device have left.

Read `kv_cache.py` first. Which request gets a block is decided in `scheduling`, not here.
"""
