"""What each API takes and returns: the tables of fields, and the OpenAPI document made of them.

Read `body.py` first, then `document.py`. The readers of bodies use the same tables.
"""
