"""Celery's result backend, for a Redis that fails while the end of a job is reported.

Celery takes any error of its backend for the task's own: a job that has completed would be shown
as failed. And its connections stay with a server that has become a replica, which refuses every
result from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from celery.backends.redis import RedisBackend
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from batchmill.producer.store.connection import is_server_fault, leaving_replicas
from batchmill.producer.store.primary import following_primary

from .transport import SENTINEL_OPTION

#: Settings for the app: a report is repeated for some seconds, then left to the sweep.
SETTINGS = {
    "result_backend_always_retry": True,
    "result_backend_max_retries": 8,
    "result_backend_base_sleep_between_retries_ms": 50,
    "result_backend_max_sleep_between_retries_ms": 2000,
}
#: For `override_backends` of the app's loader.
BACKENDS = dict.fromkeys(("redis", "rediss"), f"{__name__}:ResultBackend")
#: What Redis, or the way to it, is the cause of; a task or a chord has not failed by that.
BROKER_ERRORS = (RedisError, OperationalError, BackendError)


class _ChordUnreported(BaseException):
    """Ends Celery's work on a chord because of its cause, past Celery's `except Exception`."""

    def __init__(self, cause: Exception):
        super().__init__(cause)
        self.cause = cause


class ResultBackend(RedisBackend):
    """Celery's Redis backend, which tells its own errors from those of tasks."""

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Return whether to repeat a call: its error may pass soon. A full Redis stays full."""
        if isinstance(exc, ResponseError):
            return is_server_fault(exc) and not isinstance(exc, OutOfMemoryError)
        return bool(super().exception_safe_to_retry(exc))

    def mark_as_failure(self, task_id: str, exc: Exception, *args: Any, **options: Any) -> Any:
        """Store a failure, unless its cause is Redis: the task has not failed by that.

        Raises:
            RedisError, OperationalError, BackendError: the cause, so that the report counts as not
                made.
        """
        if isinstance(exc, BROKER_ERRORS):
            raise exc
        return super().mark_as_failure(task_id, exc, *args, **options)

    def on_chord_part_return(self, *args: Any, **options: Any) -> Any:
        """Count a part of a chord, and send the chord's body after the last part.

        Raises:
            RedisError, OperationalError, BackendError: Redis failed. Celery would report that as
                the failure of the body and remove the chord; here the chord stays, the report
                counts as not made, and the part is counted again.
        """
        try:
            return super().on_chord_part_return(*args, **options)
        except _ChordUnreported as unreported:
            raise unreported.cause from None

    def chord_error_from_stack(self, callback: Any, exc: Exception | None = None) -> Any:
        """Store the failure of a chord's body, unless the cause is Redis."""
        cause = sys.exception()
        if isinstance(cause, BROKER_ERRORS):
            raise _ChordUnreported(cause)
        return super().chord_error_from_stack(callback, exc)

    @property
    def _chord_cleanup_script(self) -> Callable[..., Any]:
        """Celery runs this script in a `finally`, also if the body was not sent."""
        run: Callable[..., Any] = super()._chord_cleanup_script
        return _skip if isinstance(sys.exception(), _ChordUnreported) else run

    def _get_client(self) -> type[Any]:
        return _keeping_chords(super()._get_client())

    def _get_pool(self, **params: Any) -> Any:
        pool = super()._get_pool(**params)
        service = self.app.conf.broker_transport_options.get(SENTINEL_OPTION)
        kind = following_primary(pool.connection_class, service)
        pool.connection_class = leaving_replicas(kind)
        return pool


def _skip(**_: Any) -> int:
    return 1


@cache
def _keeping_chords(client: type[Any]) -> type[Any]:
    """Return a client that keeps a chord's size, which Celery deletes in a `finally`."""

    class KeepingClient(client):
        def delete(self, *names: Any) -> Any:
            if isinstance(sys.exception(), _ChordUnreported):
                return 0
            return super().delete(*names)

    return KeepingClient
