"""A job store for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import CommandError, ExitCode

if TYPE_CHECKING:
    from batchmill.producer.store.job_store import JobStore


def resolve_broker(broker_url: str | None) -> str:
    """The given broker's URL, else that of the environment, else the embedded broker's.

    Raises:
        BrokerUnavailable: there is none.
        CommandError: the URL is not one we can use.
    """
    from batchmill.producer.broker_url import find_broker

    try:
        return find_broker(broker_url)
    except ValueError as error:
        raise CommandError(
            str(error), code="invalid_broker_url", exit_code=ExitCode.CONFIG
        ) from None


@contextmanager
def open_store(broker_url: str | None) -> Iterator[JobStore]:
    """Connect to the given broker, the one of the environment or the embedded one.

    Raises:
        BrokerUnavailable: there is none, or it does not answer.
        CommandError: the URL is not one we can use.
    """
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.outcomes import broker_errors

    url = resolve_broker(broker_url)
    store = JobStore.from_url(url)
    try:
        with broker_errors(url):
            yield store
    finally:
        store.close()
