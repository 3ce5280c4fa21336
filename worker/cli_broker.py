"""A job store for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchmill.producer.store import JobStore


@contextmanager
def open_store(broker_url: str | None) -> Iterator[JobStore]:
    """Connect to the given broker, the one of the environment or the embedded one.

    Raises:
        BrokerUnavailable: there is none, or it does not answer.
    """
    from batchmill.producer.broker_url import find_broker
    from batchmill.producer.outcomes import broker_errors
    from batchmill.producer.store import JobStore

    url = find_broker(broker_url)
    store = JobStore.from_url(url)
    try:
        with broker_errors(url):
            yield store
    finally:
        store.close()
