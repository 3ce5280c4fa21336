"""KV blocks in host memory: what the cache had to give up, copied back where that beats computing.

Read `offload.py` first. The block pool sees only `EvictedBlocks`, in the package `scheduling`.
"""
