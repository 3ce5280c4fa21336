"""The `batchmill` command: one file per group of commands.

Read `main.py` first; `start.py` runs before it. Heavy imports stay inside the commands, so that
`batchmill --help` is quick.
"""

from .start import main

__all__ = ["main"]
