"""Whether a service is live and ready: for HTTP probes, as `batchmill healthcheck` says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from redis import Redis
from redis.exceptions import RedisError

from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S, ShardDoubts


@dataclass(frozen=True, slots=True)
class Health:
    """State of a service. A problem is a sentence for people, or None if there is none."""

    #: The process must be restarted.
    live_problem: str | None
    #: The process works, but does no work now.
    ready_problem: str | None


#: Returns the state of the service at one moment.
Probe: TypeAlias = Callable[[], Health]


def redis_probe(*clients: Redis, needs_all: bool = True) -> Probe:
    """Return the probe of a service that is ready if Redis, or every shard, replies.

    Without `needs_all`, one shard that replies is enough.

    The process lives, because it replies to the probe. Probes may come from several threads at
    once; each takes a connection of the client's pool. Of several shards, one that hangs is not
    waited for longer than a supervisor waits for the probe.
    """
    doubts = ShardDoubts()

    def probe() -> Health:
        problems = list[str]()
        for place, client in enumerate(clients):
            name = str(place)
            limit_s = None if len(clients) == 1 else doubts.limit_s(name, COMPARE_LIMIT_S)
            try:
                with time_limit(limit_s):
                    client.ping()
            except (RedisError, OSError) as error:
                problems.append(f"Redis does not reply: {type(error).__name__}")
                doubts.note(name, has_failed=True)
            else:
                doubts.note(name, has_failed=False)
        is_ready = not problems or (not needs_all and len(problems) < len(clients))
        return Health(None, None if is_ready else problems[0])

    return probe
