"""Encryption at rest: the keys of the operator, and the ring that seals and opens with them.

Read `key_ring.py` first. The wire's side of it (which values are content, and the form of a sealed
value) is in `protocol/content.py` and `protocol/opening.py`.
"""
