"""Webhook delivery: the deliverer, the sender with pinned addresses, and the retry schedule.

Read `deliverer.py` first, then `sender.py`. This package never trusts a receiver.
"""
