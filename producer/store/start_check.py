"""What a program checks of its broker when it starts."""

from __future__ import annotations

import contextlib

from redis.exceptions import RedisError

from batchmill.producer.errors import BrokerUnavailable, UnsupportedBroker

from .broker_errors import broker_errors
from .connection import connect

#: A program also starts while its broker is away.
_TIMEOUT_S = 3.0


def refuse_unsupported(url: str) -> None:
    """Ask a broker for its version; one that does not tell it is not judged.

    Programs that serve for long wait for a broker that is away, but no wait helps against one that
    is too old. A server that is replaced by such a one later is refused by every call.

    Args:
        url: of one server.

    Raises:
        UnsupportedBroker: the server is too old, or runs in cluster mode.
    """
    with contextlib.closing(connect(url, timeout_s=_TIMEOUT_S)) as client:
        try:
            with broker_errors(url):
                client.ping()
        except UnsupportedBroker:
            raise
        except (BrokerUnavailable, RedisError):
            return  # a refused greeting, as in protected mode, is not judged either
