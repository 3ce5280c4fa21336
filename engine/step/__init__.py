"""The input tensors of one step: a scheduled batch laid out for the model, in one upload.

Read `step_inputs.py` first. Lists of tokens and blocks become tensors only here.
"""
