"""The fence that the holder of a claim writes with, as read from the record."""

from __future__ import annotations

from batchmill.producer.protocol.records import JobRecord


def fence_of(record: JobRecord | None) -> str:
    """Return the fence of a job's last claim: its number and its nonce."""
    assert record is not None
    return f"{record.fence}.{record.claim_nonce}"
