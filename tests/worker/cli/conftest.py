"""Fixtures of the command line tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchmill.producer.store.job_store import JobStore


@pytest.fixture
def broker(redis_url: str) -> dict[str, str]:
    """The environment in which a command finds the broker."""
    return {"BATCHMILL_BROKER_URL": redis_url}


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()
