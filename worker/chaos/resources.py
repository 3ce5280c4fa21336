"""Memory and file descriptors of the programs, to find leaks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .programs import Program

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Samples of a process before its first one counts: on a busy machine it loads for that long.
_WARM_UP_SAMPLES = 30


@dataclass(slots=True)
class ProcessUse:
    """Resources that one process used: when it had warmed up, and in the last sample."""

    program: str
    num_samples: int = 0
    first_rss_bytes: int = 0
    first_fds: int = 0
    rss_bytes: int = 0
    fds: int = 0


class Resources:
    """Samples the programs' main processes."""

    def __init__(self) -> None:
        self.by_pid: dict[int, ProcessUse] = {}

    def sample(self, programs: Iterable[Program]) -> None:
        """Look at every program once. Call it about once a second."""
        for program in programs:
            pid = program.pid
            if pid is None:
                continue
            try:
                rss_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
                fds = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue  # it has just ended
            use = self.by_pid.setdefault(pid, ProcessUse(program.name))
            use.num_samples += 1
            if use.num_samples <= _WARM_UP_SAMPLES:
                use.first_rss_bytes, use.first_fds = rss_bytes, fds
            use.rss_bytes, use.fds = rss_bytes, fds
