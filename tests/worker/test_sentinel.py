"""Every program finds the primary through real Sentinels, with a password."""

from __future__ import annotations

from pathlib import Path

from batchmill.worker.failover.watched import WatchedService

from ..conftest import SERVER_PROGRAM
from ..support.every_program import check_every_program


def test_every_program_works_through_sentinels(tmp_path: Path) -> None:
    service = WatchedService(tmp_path / "servers", password="secret", program=SERVER_PROGRAM)
    try:
        check_every_program(service.url, tmp_path)
    finally:
        service.close()
