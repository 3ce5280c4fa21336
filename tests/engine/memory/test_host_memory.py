"""The memory that is available on a host and under the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from batchmill.engine.memory.host_memory import available_memory_bytes

GIB = 1024**3


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with 8 GiB available, and a container that uses 3 GiB, including 1 GiB of files."""
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n"
    )
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2 * GIB}\ninactive_file {GIB}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "available"),
    [("max", 8 * GIB), (4 * GIB, 2 * GIB), (64 * GIB, 8 * GIB), (GIB, 0)],
)
def test_a_containers_limit_bounds_the_hosts_memory(
    host: Path, limit: str | int, available: int
) -> None:
    (host / "memory.max").write_text(f"{limit}\n")
    assert available_memory_bytes(meminfo=host / "meminfo", cgroup=host) == available


def test_without_a_container_the_host_decides(host: Path) -> None:
    assert available_memory_bytes(meminfo=host / "meminfo", cgroup=host / "none") == 8 * GIB


def write_group(folder: Path, limit: int | str, used: int, cached: int, *, v1: bool) -> None:
    folder.mkdir(parents=True)
    limit_name = "memory.limit_in_bytes" if v1 else "memory.max"
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{used}\n")
    cache_name = "total_inactive_file" if v1 else "inactive_file"
    (folder / "memory.stat").write_text(f"inactive_file 7\n{cache_name} {cached}\n")


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize(
    ("own", "parent", "available"),
    [("max", 3 * GIB, 2 * GIB), (2 * GIB, 5 * GIB, GIB), (6 * GIB, 4 * GIB, 3 * GIB)],
)
def test_the_tightest_limit_of_all_groups_decides(
    host: Path, v1: bool, own: int | str, parent: int, available: int
) -> None:
    unlimited = 2**63 - 4096  # how version 1 writes "no limit"
    root = host / "fs" / "memory" if v1 else host / "fs"
    own = unlimited if v1 and own == "max" else own
    write_group(root / "batch.slice", parent, 2 * GIB, GIB, v1=v1)
    write_group(root / "batch.slice" / "mill.service", own, 2 * GIB, GIB, v1=v1)
    path = "/batch.slice/mill.service"
    (host / "self").write_text(f"5:cpu:/\n4:memory:{path}\n0::/\n" if v1 else f"0::{path}\n")

    found = available_memory_bytes(
        meminfo=host / "meminfo", cgroup=host / "fs", membership=host / "self"
    )

    assert found == available


@pytest.mark.parametrize("v1", [False, True])
def test_a_container_that_sees_only_its_own_group_finds_its_limit_at_the_root(
    host: Path, v1: bool
) -> None:
    root = host / "fs" / "memory" if v1 else host / "fs"
    write_group(root, 4 * GIB, 2 * GIB, GIB, v1=v1)
    path = "/docker/0123"  # the host's name for it
    (host / "self").write_text(f"4:memory:{path}\n" if v1 else f"0::{path}\n")

    found = available_memory_bytes(
        meminfo=host / "meminfo", cgroup=host / "fs", membership=host / "self"
    )

    assert found == 3 * GIB


def test_this_machines_available_memory_is_below_its_total() -> None:
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
