"""Errors of batchmill as HTTP responses, for every framework; the examples here import it.

A response says what the caller can do. What only the operator can use (addresses, limits, settings)
goes to the log, and no response quotes what the caller has sent.
"""

from __future__ import annotations

import logging
from typing import Any

from batchmill.producer import (
    BatchmillError,
    InvalidQuery,
    JobRejected,
    NotReplicated,
    UnknownJob,
)

#: Seconds after which a caller may try again, for the header `Retry-After`.
RETRY_AFTER_S = 5
_LOG = logging.getLogger(__name__)


def error_response(
    error: BatchmillError, idempotency_key: str | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, the JSON body and the headers of the response to an error.

    Args:
        error: the error.
        idempotency_key: the key with which the caller submitted; None if there was none.
    """
    body: dict[str, Any] = {"error": error.code}
    if isinstance(error, UnknownJob):
        return 404, body, {}
    if isinstance(error, InvalidQuery):
        return 400, body, {}
    if isinstance(error, NotReplicated):
        # The job is stored and runs; only a failover may lose it. Repeating the request makes no
        # second job only under the same idempotency key, so nobody is asked to repeat it without.
        _LOG.warning("not replicated: %s", error)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if idempotency_key else {}
        return 503, body | {"job_ids": error.job_ids}, headers
    if error.retryable:  # a full or paused queue, a broker that is away
        _LOG.warning("unavailable: %s", error)
        return 503, body, {"Retry-After": str(RETRY_AFTER_S)}
    if isinstance(error, JobRejected):
        # The field and the rule that it breaks; never its content.
        return 422, body | {"param": error.param, "message": str(error)}, {}
    _LOG.error("refused: %s", error)
    return 500, body, {}
