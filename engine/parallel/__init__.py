"""Tensor parallelism on one host: ranks that compute one model together.

Read `model.py` first (rank 0's end), then `rank.py` (the process of every other rank). The
operations of a divided decoder are in `models/split_layers.py`, and the shard of each rank in
`models/shard.py`.
"""
