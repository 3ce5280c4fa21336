"""Flower for batchmill: its queue page shows our queues, and it looks for workers again and again.

Read `server.py` first. Needs the extra `monitor`.
"""
