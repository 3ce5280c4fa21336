"""The native decoder: model configurations, weights, rotary embeddings and layers.

Read `model.py` first, the interface of a model, then `decoder.py`. Nothing here knows about
requests.
"""
