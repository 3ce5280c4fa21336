"""The memory that a default cache size is taken from."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from batchmill.engine.host_memory import available_memory_bytes

GIB = 1024**3


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with 8 GiB available, and a container on it that uses 3 GiB, 1 GiB of it files."""
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
def test_a_containers_limit_bounds_what_its_host_has(
    host: Path, limit: str | int, available: int
) -> None:
    (host / "memory.max").write_text(f"{limit}\n")
    assert available_memory_bytes(meminfo=host / "meminfo", cgroup=host) == available


def test_without_a_container_the_host_decides(host: Path) -> None:
    assert available_memory_bytes(meminfo=host / "meminfo", cgroup=host / "none") == 8 * GIB


def test_this_machine_has_some_memory_and_no_more_than_all() -> None:
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
