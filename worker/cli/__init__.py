"""The `batchmill` command: one file per group of commands.

Read `main.py` first. Heavy imports stay inside the commands, so that `batchmill --help` is quick.
"""

from .main import app, main

__all__ = ["app", "main"]
