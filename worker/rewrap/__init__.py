"""Sealing stored content again, under the first of the operator's keys, and counting what is left.

Read `walk.py` first. `records.py` handles one record, `files.py` the files of the gateway.
"""
