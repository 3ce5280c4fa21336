"""Calls on workers and deliverers: heartbeats, and what those that are gone had taken."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import WorkerInfo, write_worker
from batchmill.producer.protocol.sweep_counts import LostSessions

from .call import Argument, Call


def heartbeat(info: WorkerInfo, timeout_ms: int) -> Call[int]:
    """Write a heartbeat, also if Redis is full; return how many connections of its session exist.

    Args:
        info: the heartbeat.
        timeout_ms: milliseconds without another heartbeat after which the session is silent.
    """
    args: list[Argument] = [info.name, write_worker(info), keys.WORKER_TTL_S, info.session]
    args += (timeout_ms, *info.queues)
    return Call("heartbeat", args, int)


def note_session(session: str, timeout_ms: int) -> Call[int]:
    """Note that the session of a deliverer is alive; return how many connections of it exist.

    Args:
        session: of the caller.
        timeout_ms: milliseconds without another call after which the session is silent.
    """
    return Call("session_note", (session, timeout_ms), int)


def end_lost_sessions(session: str, connected_ms: int, limit: int) -> Call[LostSessions]:
    """Put back the jobs of workers that are gone, and what else they or deliverers had taken.

    Args:
        session: of the caller.
        connected_ms: for how long the caller's own connection has been open.
        limit: most jobs that are put back, and most that are announced again, per call.
    """

    def read(reply: list[Any]) -> LostSessions:
        num_jobs, num_reannounced, num_released, *sessions = reply
        names = tuple(map(_name, sessions))
        return LostSessions(num_jobs, num_reannounced, names, num_released)

    return Call("end_lost_sessions", (session, connected_ms, limit), read)


def _name(session: bytes) -> str:
    return session.decode(errors="replace")
