"""Draft tokens: what a request may generate next, proposed without asking the model.

Read `drafter.py` first. A draft only counts if the token sampled at its place equals it
(`scheduling/speculation.py`), so nothing here can change an output. This package never imports
torch.
"""
