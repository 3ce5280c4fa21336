"""The Triton kernels. `bindings.py` imports them when an op first runs on a GPU.

Read `bindings.py` first, then `paged_attention.py`. This package never chooses between backends.
"""
