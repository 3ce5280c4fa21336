"""The ops that the engine calls: one file per op, with its formula, reference and dispatch.

Read `dispatch.py` first, then any op. Callers use only this package.
"""
