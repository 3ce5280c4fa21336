"""Calls on plain Celery tasks, from their queue to their record: take, and settle."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .call import Call

#: Tasks taken per call, and their bytes: Redis serves no other client meanwhile.
MAX_TAKEN_AT_ONCE: Final = 32
MAX_TAKEN_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class TakenTask:
    """A plain Celery task on its way from its queue into a record."""

    #: The id that it is taken under; not the task's.
    taken_id: str
    #: The list that its sender pushed to.
    source: str
    #: Workers that were lost while they had it.
    num_lost: int
    #: The message, as it was sent.
    element: bytes
    #: End of its lease, milliseconds on Redis' clock.
    held_until_ms: int


def take(
    lists: Sequence[str], *, lease_ms: int, session: str = "", connected_ms: int = 0
) -> Call[list[TakenTask]]:
    """Take tasks under a lease; one that is not settled in time is handed out again.

    A worker does not repeat the call if its reply is lost: the tasks in that reply come again when
    their lease is over, and no lost worker is counted for them.

    Args:
        lists: to take tasks from, in this order.
        lease_ms: length of the lease.
        session: of the calling worker. If it is lost, each task that it had counts a lost worker.
        connected_ms: how long the session has been connected. One that connected lately does not
            judge: a task whose taker has no connection is left to other workers.
    """

    def parse(reply: list[Any]) -> list[TakenTask]:
        held_until_ms, *taken = reply
        return [
            TakenTask(
                taken[i].decode(errors="replace"),
                taken[i + 1].decode(errors="replace"),
                taken[i + 2],
                taken[i + 3],
                held_until_ms,
            )
            for i in range(0, len(taken), 4)
        ]

    fresh = (secrets.token_hex(8) for _ in range(MAX_TAKEN_AT_ONCE))
    limits = (lease_ms, MAX_TAKEN_AT_ONCE, MAX_TAKEN_BYTES)
    caller = (session, connected_ms)
    return Call("tasks_take", (*limits, *caller, len(lists), *lists, *fresh), parse)


def drop(taken_id: str) -> Call[None]:
    """Drop a taken task: it has a record, or never can have one."""
    return Call("tasks_settle", (taken_id, "drop"), _ignore)


def announce(taken_id: str, queue: str, message: str) -> Call[None]:
    """Turn a taken message that names a stored job into an announcement of that job."""
    return Call("tasks_settle", (taken_id, "announce", queue, message), _ignore)


def put_off(task: TakenTask, delay_ms: int) -> Call[None]:
    """Have a taken task handed out again after a while: no fault of its own kept it.

    Nothing is delayed if another worker has taken it since: that worker may be storing the job.
    """
    args = (task.taken_id, "put_off", delay_ms, task.held_until_ms)
    return Call("tasks_settle", args, _ignore)


def _ignore(_: Any) -> None:
    """Return None: there is one reply."""
