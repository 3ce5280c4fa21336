"""Pictures and sounds: which models take them, and how they become rows of a prompt.

Read `model.py` first: it is what the engine asks of each family, and `families.py` lists them.
"""
