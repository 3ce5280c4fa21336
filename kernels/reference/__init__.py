"""Plain-torch references that are too long to stand beside their op, and the types that they share.

Read `paged_attention.py` first. The references define what every other backend must compute.
"""
