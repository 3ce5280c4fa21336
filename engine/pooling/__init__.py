"""Pooling: from the final states of a step to the vectors and scores of pooled requests.

Read `pooler.py` first; `engine/request/pooling.py` has what a request asks for.
"""
