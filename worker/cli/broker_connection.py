"""The broker of a command: which one it is, and a job store connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import CommandError, ExitCode

if TYPE_CHECKING:
    from batchmill.producer.store.job_store import JobStore


def resolve_broker(broker_url: str | None) -> str:
    """Return the given URL, else that of the environment, else the embedded broker's.

    Raises:
        BrokerUnavailable: no broker is named and none runs here.
        CommandError: the URL is invalid.
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
    """Connect to the given broker, else to that of the environment, else to the embedded one.

    Raises:
        BrokerUnavailable: no broker is named and none runs here, or it does not reply.
        CommandError: the URL or `BATCHMILL_BROKER_TIMEOUT_S` is invalid.
    """
    from batchmill.producer.store.connection import connect
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.reply_errors import broker_errors

    url = resolve_broker(broker_url)
    try:
        client = connect(url)
    except ValueError as error:
        raise CommandError(str(error), code="invalid_settings", exit_code=ExitCode.CONFIG) from None
    store = JobStore(client)
    try:
        with broker_errors(url):
            yield store
    finally:
        store.close()
