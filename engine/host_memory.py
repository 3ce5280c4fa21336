"""How much memory this process may still take on its host or in its container."""

from __future__ import annotations

import ctypes
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(*, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Memory to be had without swapping: the host's, or what the container's limit leaves.

    Files that the kernel caches count as available, since it drops them on demand.

    Args:
        meminfo: The kernel's account of the host.
        cgroup: The container's control group, version 2; need not exist.
    """
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(values["MemAvailable"].split()[0]) * 1024
    limit = cgroup / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return available
    used = int((cgroup / "memory.current").read_text())
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    left = int(limit.read_text()) - used + int(stat.get("inactive_file", 0))
    return max(0, min(available, left))


def return_free_memory() -> None:
    """Hand freed memory back to the system, where the C library kept it for later.

    Weights that are laid out anew, one after another, leave holes that nothing else fills:
    measured, a third of the model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
