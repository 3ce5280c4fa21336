"""Steering vectors: directions that are added to a request's hidden states.

Read `vectors.py` first, which gives requests those that they name; `vector_file.py` reads and
stores their files.
"""
