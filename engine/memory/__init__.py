"""Memory: the paged KV cache, and how much the host and the device have left.

Read `kv_cache.py` first. This package never decides who gets a block; `scheduling` does.
"""
