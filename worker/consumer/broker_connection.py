"""Connections of the consumer to the broker, which come back within seconds after an outage."""

from __future__ import annotations

from typing import Any, Final

from kombu import Connection

#: Wait before the first attempt to connect again, how much longer each wait is than the one
#: before, and the longest one. kombu's own waits grow to half a minute, and Celery has no setting.
_FIRST_WAIT_S: Final = 0.2
_LONGER_BY_S: Final = 0.4
MAX_WAIT_S: Final = 2.0

#: Seconds between two looks for a reply that is overdue. On a half-open connection kombu drops the
#: request for a message after two of them.
LOOK_INTERVAL_S: Final = 2


class BrokerConnection(Connection):
    """kombu's connection with a shorter back-off."""

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        waits = {
            "interval_start": _FIRST_WAIT_S,
            "interval_step": _LONGER_BY_S,
            "interval_max": MAX_WAIT_S,
        }
        ensure: Any = super()._ensure_connection
        return ensure(*args, **(waits | kwargs))
