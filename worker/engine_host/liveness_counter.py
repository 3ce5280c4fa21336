"""A counter in shared memory that shows whether the engine's loop moves."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_FORMAT = "Q"
_SIZE_BYTES = struct.calcsize(_FORMAT)


class LivenessCounter:
    """Eight bytes of shared memory: the engine's loop increments them, the worker only reads.

    Reading needs neither the child's cooperation nor a lock, because an aligned store of one
    machine word is atomic.
    """

    def __init__(self, fd: int) -> None:
        """Map the counter behind a descriptor; the caller keeps and closes the descriptor."""
        self._memory = mmap.mmap(fd, _SIZE_BYTES)
        self._count: int = struct.unpack_from(_FORMAT, self._memory)[0]

    @staticmethod
    def create_file() -> int:
        """Return the descriptor of a new counter, for this process and one child."""
        with tempfile.TemporaryFile() as file:
            file.truncate(_SIZE_BYTES)
            return os.dup(file.fileno())

    def advance(self) -> None:
        """Add one. Only the engine's loop calls this."""
        self._count += 1
        struct.pack_into(_FORMAT, self._memory, 0, self._count)

    @property
    def value(self) -> int:
        """Iterations of the engine's loop so far."""
        count: int = struct.unpack_from(_FORMAT, self._memory)[0]
        return count
