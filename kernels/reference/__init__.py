"""Plain-torch references that are too long to stand beside their op.

Read `paged_attention.py` first. The references define what every other backend must compute.
"""
