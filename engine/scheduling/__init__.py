"""Which requests are computed in the next step, and which KV blocks hold their tokens.

Read `scheduler.py` first, then `block_pool.py`. Host-only: this package never imports torch.
"""
