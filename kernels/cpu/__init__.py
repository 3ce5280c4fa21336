"""The C++ kernels: sources, build, and the bindings that check arguments and pass pointers.

Read `bindings.py` first, then `ops.h`. This package never chooses between backends.
"""
