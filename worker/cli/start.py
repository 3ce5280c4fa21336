"""The first thing that the `batchmill` program does: it makes SIGTERM end it, then goes on.

As process 1 of a container, a program gets only signals that it has asked for. Until Celery or the
deliverer asks for SIGTERM, a second of imports passes, in which the signal would be lost and the
container killed only after its grace period. So nothing but the standard library is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_AS_FROM_A_SIGNAL = 128


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end)
    try:
        from .main import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:  # while it imports, or between two steps of its end
        sys.exit(_AS_FROM_A_SIGNAL + signal.SIGINT)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(_AS_FROM_A_SIGNAL + number)
