"""The doctor's check of the object store for large payloads."""

from __future__ import annotations

from collections.abc import Iterable

from batchmill.producer.errors import BatchmillError
from batchmill.producer.payloads.settings import find_object_store

from .doctor_findings import Finding, Level


def check_payloads() -> Iterable[Finding]:
    """Write, read and delete a small object, if there is an object store."""
    try:
        objects = find_object_store()
        if objects is None:
            yield Finding("payloads", Level.OK, "BATCHMILL_PAYLOAD_URL is not set: all in Redis")
            return
        objects.probe()
    except BatchmillError as error:
        yield Finding("payloads", Level.PROBLEM, str(error))
        return
    found = f"the object store takes content over {objects.threshold_bytes} bytes"
    yield Finding("payloads", Level.OK, found)
