"""The engine process, and the worker's connection to it.

Read `engine_link.py` first, then `process.py`. Only `real_engine.py` imports torch.
"""
