"""What brokers hold at one moment: the source of queue metrics and of `top`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.exceptions import NoPermissionError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.reads import counts
from batchmill.producer.protocol.records import DeadLetterKind, WorkerInfo
from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.pauses import Pauses
from batchmill.producer.store.queue_figures import QueueFigures, queue_figures

from .autoscaling import ModelFigures, Speeds, model_figures
from .joined_fleet import joined_counts, joined_models, joined_queues

#: Dead letters whose kind is read in one round trip.
_LETTERS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Fleet:
    """Queues, models, workers and totals of all brokers at one moment."""

    counts: StoreCounts
    #: Every queue that holds jobs or that a worker serves, by name.
    queues: Sequence[QueueFigures]
    #: Queues that a worker serves.
    served: frozenset[str]
    #: Queues that an operator has paused.
    paused: frozenset[str]
    workers: Sequence[WorkerInfo]
    models: Sequence[ModelFigures]


class FleetReader:
    """Reads a broker again and again, and remembers the speed of workers in between.

    Every call may raise `redis.exceptions.RedisError`.
    """

    def __init__(self, store: JobStore, *, target_s: float) -> None:
        """Bind to one store.

        Args:
            store: the job store of the broker.
            target_s: seconds in which the workers are to work off what waits.
        """
        self._store = store
        self._target_s = target_s
        self._speeds = Speeds()
        self._kinds: dict[tuple[bytes, float], str] = {}

    def read(self) -> Fleet:
        """Read everything but the kinds of dead letters."""
        store = self._store
        workers = store.list_workers()
        served = frozenset(queue for worker in workers for queue in worker.queues)
        queues = queue_figures(store)
        listed = {queue.queue for queue in queues}
        queues += [QueueFigures(name, 0, 0, 0, 0, None) for name in served - listed]
        depths = [QueueDepth(x.queue, x.jobs + x.delayed_jobs, x.announcements) for x in queues]
        pauses = Pauses(store).all()
        return Fleet(
            counts=store.read(counts(depths)),
            queues=sorted(queues, key=lambda queue: queue.queue),
            served=served,
            paused=frozenset(each.name for each in pauses if each.kind is PauseKind.QUEUE),
            workers=workers,
            models=model_figures(queues, workers, self._speeds, target_s=self._target_s),
        )

    def letter_kinds(self) -> Counter[str]:
        """Return how many dead letters are kept, by kind. Only new ones are read."""
        known = self._kinds
        letters = self._store.read(_letters())
        new = [letter for letter in letters if letter not in known]
        for start in range(0, len(new), _LETTERS_AT_ONCE):
            page = new[start : start + _LETTERS_AT_ONCE]
            known.update(zip(page, self._store.read(_kinds([id_ for id_, _ in page])), strict=True))
        self._kinds = {letter: known[letter] for letter in letters}
        return Counter(self._kinds.values())

    def oldest_event_age_s(self) -> float:
        """Return the age of the oldest webhook event that waits; 0 without one."""
        return self._store.read(_oldest_event())

    def memory(self) -> tuple[int, int] | None:
        """Return what Redis uses, and its `maxmemory` (0: none), bytes; None without the right."""
        try:
            info: Any = self._store.client.info("memory")
        except NoPermissionError:
            return None
        return int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))


def joined_fleet(parts: Sequence[Fleet]) -> Fleet:
    """Return what brokers hold together."""
    if len(parts) == 1:
        return parts[0]
    return Fleet(
        counts=joined_counts([part.counts for part in parts]),
        queues=joined_queues(part.queues for part in parts),
        served=frozenset().union(*(part.served for part in parts)),
        paused=frozenset().union(*(part.paused for part in parts)),
        workers=[worker for part in parts for worker in part.workers],
        models=joined_models(part.models for part in parts),
    )


def fleet_while_away(last: Fleet) -> Fleet:
    """Return what stays true of a broker that does not reply: its totals, and the workers it wants.

    Args:
        last: what it held when it last replied.
    """
    gone: dict[str, Any] = {"workers": {}, "running_jobs": 0, "tokens_per_s": 0.0}
    gone |= {"queued_jobs": 0, "queued_tokens": 0, "backlog_s": 0.0, "capacity_tokens_per_s": None}
    return Fleet(
        counts=StoreCounts(0, 0, 0, 0, 0, 0, last.counts.totals),
        queues=(),
        served=frozenset(),
        paused=frozenset(),
        workers=(),
        models=[replace(each, **gone) for each in last.models],
    )


def _letters() -> Read[list[tuple[bytes, float]]]:
    return Read(
        lambda pipeline: pipeline.zrange(keys.DEAD, 0, -1, withscores=True),
        lambda replies: [(bytes(id_), at) for id_, at in stored(replies[0], [])],
        keeps_errors=True,
    )


def _kinds(letter_ids: Sequence[bytes]) -> Read[list[str]]:
    known = {kind.value for kind in DeadLetterKind}

    def queue(pipeline: Any) -> None:
        for letter_id in letter_ids:
            pipeline.hget(keys.dead("").encode() + letter_id, "kind")

    def parse(replies: list[Any]) -> list[str]:
        kinds = [(stored(reply) or b"").decode(errors="replace") for reply in replies]
        return [kind if kind in known else DeadLetterKind.UNUSABLE.value for kind in kinds]

    return Read(queue, parse, keeps_errors=True)


def _oldest_event() -> Read[float]:
    def queue(pipeline: Any) -> None:
        pipeline.time()
        pipeline.zrange(keys.OUTBOX, 0, 0, withscores=True)

    def parse(replies: list[Any]) -> float:
        (seconds, microseconds), first = replies[0], stored(replies[1], [])
        now_ms = seconds * 1000 + microseconds / 1000
        return max(0.0, (now_ms - first[0][1]) / 1000) if first else 0.0

    return Read(queue, parse, keeps_errors=True)
