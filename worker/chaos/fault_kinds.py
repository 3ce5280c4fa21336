"""The kinds of faults: what each does, how long it lasts, and which faults can happen at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lane(StrEnum):
    """Faults of one lane follow each other; faults of different lanes overlap."""

    PROCESS = "process"
    SERVER = "server"
    NETWORK = "network"
    RECEIVER = "receiver"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault."""

    name: str
    lane: Lane
    summary: str
    #: Shortest and longest duration, in leases; (0, 0) for a fault without a duration.
    leases: tuple[float, float] = (0.0, 0.0)
    #: Whether the time to recover begins when the fault is over, not when it begins.
    recovers_at_end: bool = False
    #: Whether workers that are frozen or cut off compute what is later computed again.
    freezes_worker: bool = False

    @property
    def hinders_checkpoints(self) -> bool:
        """Whether jobs may compute tokens that no checkpoint can save."""
        return self.freezes_worker or self.lane in (Lane.SERVER, Lane.NETWORK)


_LANE_KINDS = (
    FaultKind("kill_worker", Lane.PROCESS, "kill -9 of a worker and its engine together"),
    FaultKind("kill_main", Lane.PROCESS, "kill -9 of a worker's main process alone"),
    FaultKind("kill_engine", Lane.PROCESS, "kill -9 of an engine"),
    FaultKind("stop_engine", Lane.PROCESS, "SIGSTOP of an engine, until the watchdog kills it"),
    FaultKind("term_worker", Lane.PROCESS, "SIGTERM to a worker, which gives its jobs back"),
    FaultKind(
        "freeze_short",
        Lane.PROCESS,
        "SIGSTOP of a worker and its engine for less than a lease, then SIGCONT",
        (0.2, 0.6),
        recovers_at_end=True,
    ),
    FaultKind(
        "freeze_long",
        Lane.PROCESS,
        "SIGSTOP of a worker and its engine for longer than a lease, then SIGCONT",
        (1.4, 2.0),
        freezes_worker=True,
    ),
    FaultKind("kill_deliverer", Lane.PROCESS, "kill -9 of a deliverer"),
    FaultKind("freeze_deliverer", Lane.PROCESS, "SIGSTOP of a deliverer, then SIGCONT", (0.3, 1.0)),
    FaultKind(
        "redis_term",
        Lane.SERVER,
        "Redis ends by SIGTERM and is started again",
        (0.05, 0.2),
        recovers_at_end=True,
    ),
    FaultKind(
        "redis_kill",
        Lane.SERVER,
        "kill -9 of Redis, which is started again",
        (0.05, 0.2),
        recovers_at_end=True,
    ),
    FaultKind(
        "redis_away",
        Lane.SERVER,
        "kill -9 of Redis, which is away for longer than a lease",
        (1.3, 2.0),
        recovers_at_end=True,
    ),
    FaultKind(
        "redis_frozen",
        Lane.SERVER,
        "SIGSTOP of Redis for less than a lease, then SIGCONT",
        (0.2, 0.7),
        recovers_at_end=True,
    ),
    FaultKind(
        "redis_frozen_long",
        Lane.SERVER,
        "SIGSTOP of Redis for longer than a lease, then SIGCONT",
        (1.3, 2.0),
        recovers_at_end=True,
    ),
    FaultKind(
        "failover",
        Lane.SERVER,
        "a planned failover: FAILOVER, and the address leads to the replica",
    ),
    FaultKind(
        "failover_kill",
        Lane.SERVER,
        "kill -9 of the primary after its replica has caught up; the replica is promoted",
    ),
    FaultKind(
        "client_kill",
        Lane.SERVER,
        "CLIENT KILL of all connections, five times a second",
        (0.2, 0.6),
    ),
    FaultKind("cut", Lane.NETWORK, "all connections of some programs are cut"),
    FaultKind(
        "cut_replies", Lane.NETWORK, "one reply of ten is lost with its connection", (0.3, 1.0)
    ),
    FaultKind(
        "black_hole",
        Lane.NETWORK,
        "no byte passes for less than a lease; what was sent arrives afterwards",
        (0.2, 0.6),
        recovers_at_end=True,
    ),
    FaultKind(
        "isolate",
        Lane.NETWORK,
        "one worker is cut off from Redis for longer than a lease",
        (1.4, 2.0),
    ),
    FaultKind(
        "half_open_requests",
        Lane.NETWORK,
        "connections stay open, but what programs send on them is lost",
    ),
    FaultKind(
        "half_open_replies",
        Lane.NETWORK,
        "connections stay open, but no reply arrives on them",
    ),
    FaultKind(
        "refuse", Lane.NETWORK, "new connections are refused, old ones are cut", (0.2, 0.6), True
    ),
    FaultKind(
        "receiver_errors", Lane.RECEIVER, "every webhook receiver responds with 503", (0.3, 1.0)
    ),
    FaultKind(
        "receiver_hangs", Lane.RECEIVER, "webhook receivers respond after two seconds", (0.3, 1.0)
    ),
)
KINDS = {kind.name: kind for kind in _LANE_KINDS}
#: Kinds that need a server which this program started.
SERVER_KINDS = tuple(name for name, kind in KINDS.items() if kind.lane is Lane.SERVER)
