"""The native decoder: model configurations, weights, rotary embeddings and layers.

Read `model.py` first (what a model has to offer), then `decoder.py`. Nothing here knows about
requests.
"""
