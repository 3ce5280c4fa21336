"""The Triton kernels and their launchers. The ops import them when they first run on a GPU.

Read `paged_attention.py` first. This package never chooses between backends.
"""
