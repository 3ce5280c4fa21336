"""Waiting until replicas have what a script has written, so that a failover does not lose it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import SubmitReply, submitted_ids
from batchmill.producer.settings import ProducerSettings, check_replica_timeout


class NotConfirmed(RedisConnectionError):
    """The calls were made, but too few replicas have confirmed that they have them.

    A connection error, because a repetition may succeed, and every call may be repeated.
    """

    def __init__(self, wait: ReplicaWait, num_confirmed: int, values: Sequence[Any]):
        super().__init__(
            f"it is stored, but {num_confirmed} of {wait.num_replicas} replicas confirmed it "
            f"within {wait.timeout_s:g} s (BATCHMILL_BROKER_MIN_REPLICAS, "
            "BATCHMILL_BROKER_REPLICA_TIMEOUT_S)"
        )
        #: What the calls returned.
        self.values = values

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The jobs that were submitted."""
        return submitted_ids(self.values)


@dataclass(frozen=True, slots=True)
class ReplicaWait:
    """How many replicas must have a write, and how long to wait for them."""

    num_replicas: int
    timeout_s: float

    def queue(self, pipeline: Any) -> None:
        """Queue the wait behind the calls of a pipeline, whose last reply is for `check`."""
        # WAIT waits for what this connection has written, and a repeated call may write nothing.
        # A published message is always sent to the replicas, and needs no memory.
        pipeline.publish(keys.REPLICATED, "")
        pipeline.execute_command("WAIT", self.num_replicas, math.ceil(self.timeout_s * 1000))

    def check(self, reply: Any, values: Sequence[Any]) -> None:
        """Check the reply to the wait.

        Raises:
            NotConfirmed: too few replicas have what the calls have stored.
            redis.exceptions.RedisError: the server refused to wait.
        """
        if isinstance(reply, Exception):
            raise reply
        if reply < self.num_replicas and not all(map(_has_stored_nothing, values)):
            raise NotConfirmed(self, reply, values)


def replica_wait(
    settings: ProducerSettings,
    *,
    min_replicas: int | None = None,
    call_timeout_s: float | None = None,
) -> ReplicaWait | None:
    """Return the wait after each confirmed write; None if no replica is asked for.

    Args:
        settings: of the client or worker.
        min_replicas: replicas that must have a write; None takes the setting.
        call_timeout_s: seconds that a call may take in all; None takes the setting.

    Raises:
        ValueError: the number is negative, or the wait does not fit into the time of a call.
    """
    num_replicas = settings.broker_min_replicas if min_replicas is None else min_replicas
    if num_replicas < 0:
        raise ValueError(f"min_replicas is {num_replicas}; it must be 0 or more")
    if num_replicas == 0:
        return None
    timeout_s = settings.broker_replica_timeout_s
    check_replica_timeout(
        timeout_s, settings.broker_timeout_s if call_timeout_s is None else call_timeout_s
    )
    return ReplicaWait(num_replicas, timeout_s)


def _has_stored_nothing(value: Any) -> bool:
    return isinstance(value, SubmitReply) and value.job_id is None
