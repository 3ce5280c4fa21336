"""Sending webhook events again that were written since a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from batchmill.producer.errors import InvalidQuery
from batchmill.producer.moments import moment
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import outbox as calls
from batchmill.producer.protocol.calls.call import Call
from batchmill.producer.protocol.outbox import ReplayedPage, endpoint_of

_PAGE_EVENTS = 500
#: While more events wait for delivery, no further ones are queued.
MAX_WAITING_EVENTS = 100_000
#: Wait before a call is repeated because too many events wait.
FULL_WAIT_S = 1.0
#: By which a time may lie after the broker's clock: clocks differ.
_CLOCK_SKEW_MS = 60_000


@dataclass(frozen=True, slots=True)
class ReplayQuery:
    """Which settled events to send again."""

    #: Written at this time or later, milliseconds of unix time, on Redis' clock.
    since_ms: int
    #: Written at this time or earlier; None means up to now.
    until_ms: int | None = None
    #: Only events for this URL, of this tenant.
    url: str | None = None
    tenant: str = keys.DEFAULT_TENANT
    #: Only events of this job or batch.
    job_id: str | None = None
    #: Only events for this registered receiver.
    receiver_id: str | None = None
    #: Only events that were not delivered.
    failed_only: bool = False


@dataclass(frozen=True, slots=True)
class ReplayCounts:
    """How far a replay is."""

    #: Events that will be sent again.
    num_replayed: int = 0
    #: Not sent, because their endpoint is disabled.
    num_disabled: int = 0
    #: Not queued, because they wait for delivery already.
    num_waiting: int = 0
    #: Ids of events that are no longer kept.
    gone: tuple[str, ...] = ()
    #: An interrupted replay continues with the events that were written since this time; None
    #: before the first page, and at the end.
    continue_from: datetime | None = None


class Replay:
    """One replay, page by page in the order in which events were written.

    Each event is sent with its id and its stored bytes, on a new retry schedule, and after events
    that are not replayed. An event is kept for eight days after its last attempt; the ids of those
    that are gone are known for about six more days.
    """

    def __init__(
        self, query: ReplayQuery, now_ms: int, *, max_waiting: int = MAX_WAITING_EVENTS
    ) -> None:
        """Begin a replay of the events until now.

        Args:
            query: which events.
            now_ms: time on Redis' clock.
            max_waiting: while so many events wait for delivery, no more are queued.
        """
        self.counts = ReplayCounts()
        self._query = query
        self._until_ms = now_ms if query.until_ms is None else query.until_ms
        self._after_ms: int | None = query.since_ms - 1
        self._max_waiting = max_waiting

    @property
    def is_done(self) -> bool:
        """Whether there are no more events."""
        return self._after_ms is None

    @property
    def next_from(self) -> datetime | None:
        """The time from which the events are still to be queued; None at the end."""
        return None if self._after_ms is None else moment(self._after_ms + 1)

    def call(self) -> Call[ReplayedPage | None]:
        """Return the call that queues the next page; its reply is None if too many events wait."""
        assert self._after_ms is not None
        query = self._query
        return calls.replay(
            self._after_ms,
            self._until_ms,
            endpoint="" if query.url is None else endpoint_of(query.url, query.tenant),
            job_id=query.job_id or "",
            receiver_id=query.receiver_id or "",
            failed_only=query.failed_only,
            limit=_PAGE_EVENTS,
            max_waiting=self._max_waiting,
        )

    def take(self, page: ReplayedPage) -> None:
        """Add a page that was queued."""
        self._after_ms = page.after_ms
        counts = self.counts
        self.counts = ReplayCounts(
            counts.num_replayed + page.num_queued,
            counts.num_disabled + page.num_disabled,
            counts.num_waiting + page.num_waiting,
            (*counts.gone, *page.gone),
            None if page.after_ms is None else moment(page.after_ms + 1),
        )


def joined_counts(replays: Sequence[Replay]) -> ReplayCounts:
    """Return how far the replays of several brokers are together."""
    parts = [replay.counts for replay in replays]
    if len(parts) == 1:
        return parts[0]
    starts = [replay.next_from for replay in replays]
    return ReplayCounts(
        sum(part.num_replayed for part in parts),
        sum(part.num_disabled for part in parts),
        sum(part.num_waiting for part in parts),
        tuple(event_id for part in parts for event_id in part.gone),
        min((start for start in starts if start is not None), default=None),
    )


def since_ms(since: datetime | timedelta, now_ms: int) -> int:
    """Return a time, or an age before `now_ms`, as milliseconds of unix time.

    Raises:
        InvalidQuery: the time has no zone or has yet to come, or the age is negative.
    """
    if isinstance(since, timedelta):
        if since < timedelta(0):
            raise InvalidQuery(f"since is {since}; an age must not be negative")
        return now_ms - int(since.total_seconds() * 1000)
    if since.tzinfo is None:
        raise InvalidQuery(f"since is {since}; give it a time zone, such as datetime.now(UTC)")
    moment_ms = int(since.timestamp() * 1000)
    if moment_ms > now_ms + _CLOCK_SKEW_MS:
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        raise InvalidQuery(
            f"since is {since}, which has yet to come: the broker's clock says {now}; give a time "
            "before that, and check its zone"
        )
    return moment_ms
