"""The tensors of one step: a scheduled batch laid out for the model, in one upload.

Read `step_inputs.py` first. This is the only place where lists of tokens and blocks become tensors.
"""
