"""Sampling, from logits to tokens: request controls, sampling, log probabilities.

Read `sampler.py` first, then `logits_processor.py`. This package never runs the model.
"""
