"""Measures the memory that this process may still take on its host or in its container."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
#: Files of a control group in versions 2 and 1: its limit, its use, and the key of droppable cache.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory_bytes(
    *, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP
) -> int:
    """Return the memory available without swapping, on the host and under every limit.

    Every control group from the process's own up to the root may have a limit (a container's, a
    service's `MemoryMax`, a slice's). Files that the kernel caches count as available, because it
    drops them on demand.

    Args:
        meminfo: The kernel's figures of the host.
        cgroup: Mount point of the control groups, version 2, or version 1 with a folder `memory`;
            need not exist.
        membership: The groups of this process, as in `/proc/self/cgroup`; need not exist.
    """
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(values["MemAvailable"].split()[0]) * 1024
    for folder, names in _groups(cgroup, membership):
        left = _left_bytes(folder, *names)
        if left is not None:
            available = min(available, left)
    return max(0, available)


def _groups(cgroup: Path, membership: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the control groups that may limit this process's memory, from its own to the root."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    v1_path = v2_path = "/"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            v2_path = path
        elif "memory" in controllers.split(","):
            v1_path = path
    for root, path, names in ((cgroup, v2_path, _V2), (cgroup / "memory", v1_path, _V1)):
        # In a container the path may be the host's and not exist: the root is its own group.
        group = Path(path.lstrip("/"))
        for inner in (group, *group.parents):
            yield root / inner, names


def _left_bytes(folder: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    """Return the memory that a control group's limit leaves, or None without a limit."""
    limit = folder / limit_name
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    used = int((folder / used_name).read_text())
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(limit.read_text()) - used + int(stat.get(cache_name, 0))


def return_free_memory() -> None:
    """Return freed memory that the C library keeps for later to the system.

    Weights that are repacked one after another leave holes that nothing else fills: measured, a
    third of the model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
