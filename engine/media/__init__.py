"""Pictures and sounds: which models take them, and how they become rows of a prompt.

Read `agreement.py` first: it checks that a request's media suit its messages and the model.
"""
