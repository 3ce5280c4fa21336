"""LoRA adapters: PEFT folders, their identity, and those that are in memory; begin with `pool.py`.

`peft_config.py`, `digest.py` and `folder.py` need no torch: a command registers adapters with them.
"""
