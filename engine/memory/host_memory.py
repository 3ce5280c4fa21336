"""How much memory this process may still take on its host or in its container."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
#: Files of a control group in version 2 and in version 1, and what counts as droppable there.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory_bytes(
    *, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP
) -> int:
    """Memory to be had without swapping: the host's, or what the tightest limit above leaves.

    Every control group from the process's own up to the root may have a limit (a container's, a
    service's `MemoryMax`, a slice's). Files that the kernel caches count as available, since it
    drops them on demand.

    Args:
        meminfo: The kernel's account of the host.
        cgroup: Where the control groups are mounted, version 2, or version 1 with a folder
            `memory`; need not exist.
        membership: The groups that this process is in, as `/proc/self/cgroup`; need not exist.
    """
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(values["MemAvailable"].split()[0]) * 1024
    for folder, names in _groups(cgroup, membership):
        left = _left_bytes(folder, *names)
        if left is not None:
            available = min(available, left)
    return max(0, available)


def _groups(cgroup: Path, membership: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The process's control groups that may limit memory, from its own to the root."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    v1_path = v2_path = "/"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            v2_path = path
        elif "memory" in controllers.split(","):
            v1_path = path
    for root, path, names in ((cgroup, v2_path, _V2), (cgroup / "memory", v1_path, _V1)):
        # In a container the path may be the host's, which is not there: the root is its own group.
        group = Path(path.lstrip("/"))
        for inner in (group, *group.parents):
            yield root / inner, names


def _left_bytes(folder: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    """What a control group's limit leaves; None where it has none."""
    limit = folder / limit_name
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    used = int((folder / used_name).read_text())
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(limit.read_text()) - used + int(stat.get(cache_name, 0))


def return_free_memory() -> None:
    """Hand freed memory back to the system, where the C library kept it for later.

    Weights that are laid out anew, one after another, leave holes that nothing else fills:
    measured, a third of the model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
