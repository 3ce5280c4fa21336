"""Connections to hosts that callers name: each to an address that was checked.

Read `pinned_connection.py` first. Webhooks and the fetching of media use it.
"""
