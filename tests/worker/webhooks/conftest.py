"""Fixtures of the webhook tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchmill.producer.store.job_store import JobStore

from ..webhook_deliverers import Deliverers


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


@pytest.fixture
def deliverers(redis_url: str) -> Iterator[Deliverers]:
    deliverers = Deliverers(redis_url)
    yield deliverers
    deliverers.close()
