"""What `pause` and `resume` apply to."""

from __future__ import annotations

import re

from batchmill.producer.errors import InvalidQuery
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import endpoint_of
from batchmill.producer.protocol.pauses import PauseKind

_URL = re.compile(r"https?://[^/?#\s]+\S*", re.ASCII | re.IGNORECASE)


def pause_target(
    queue: str | None = None, tenant: str | None = None, endpoint: str | None = None
) -> tuple[PauseKind, str]:
    """Return the kind and the name of a queue, a tenant, or an endpoint of a tenant.

    Raises:
        InvalidQuery: a name is invalid, or it is not clear what is meant.
    """
    if tenant is not None:
        check_tenant(tenant)
    if endpoint is not None and queue is None:
        return PauseKind.ENDPOINT, endpoint_of(_checked_url(endpoint), tenant or "default")
    if queue is not None and tenant is None and endpoint is None:
        return PauseKind.QUEUE, _checked_queue(queue)
    if tenant is not None and queue is None:
        return PauseKind.TENANT, tenant
    raise InvalidQuery("give a queue, a tenant, or an endpoint (which may be that of a tenant)")


def check_tenant(name: str) -> None:
    """Check the name of a tenant.

    Raises:
        InvalidQuery: no tenant can have this name.
    """
    if not keys.is_tenant_name(name):
        raise InvalidQuery(
            f"tenant is {name[:80]!r}; a name has 1 to 64 letters, digits, _ . and -"
        )


def _checked_queue(name: str) -> str:
    model, _, priority = name.removeprefix("batchmill.").rpartition(".")
    try:
        return keys.queue_name(model, priority)
    except ValueError as error:
        raise InvalidQuery(
            f"queue is {name[:200]!r} ({error}); a name is such as batchmill.demo.normal, and "
            "`batchmill status` lists them"
        ) from None


def _checked_url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise InvalidQuery(
            f"endpoint is {url[:200]!r}; it must be the URL of a webhook, with its query"
        )
    return url
