"""LoRA adapters: PEFT folders, their identity, and those that are in memory.

Read `pool.py` first. `folder.py` and what it imports need no torch: a command adds adapters by it.
"""
