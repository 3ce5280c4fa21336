"""From logits to tokens: request controls, sampling, log probabilities.

Read `sampler.py` first, then `logits_stage.py`. This package never runs the model.
"""
