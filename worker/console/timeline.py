"""The timeline of a job: what happened when, and the bars that show where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobStatus
from batchmill.producer.store.deliveries import EventStatus

from . import formats

#: What an attempt's cause means, for people.
_CAUSES = {
    "drain": "the worker was stopped in order",
    "not_started": "the engine died before it had the job",
    "moved": "another worker had room for it",
    "sliced": "its time slice was over, and others waited",
    "engine_death": "the engine died",
    "engine_stall": "the engine stood still",
    "worker_lost": "the worker was lost",
    "lease_expired": "the worker was frozen or cut off",
}
_ENDS = frozenset({"completed", "cancelled", "expired"})
#: Narrowest bar, percent of the width.
_LEAST_WIDTH = 0.6


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened."""

    at_ms: float
    #: `submitted`, `attempt`, `running`, `interrupted`, `webhook`, `failed` or a terminal state:
    #: the colour.
    kind: str
    title: str
    details: Sequence[str] = ()
    #: Path of a page about it, below the console.
    path: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of time: its place and width in percent of the whole, and what it was."""

    x: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps in order, and bars over the time from submit to the end."""

    steps: Sequence[Step]
    bars: Sequence[Bar] = field(default_factory=tuple)
    total_s: float = 0.0


def timeline(job: JobStatus, events: Iterable[EventStatus]) -> Timeline:
    """Return the timeline of a job and its webhook events."""
    steps = [Step(job.enqueued_at_ms, "submitted", "Submitted", [f"to {job.model}"])]
    if job.scheduled_at_ms is not None:
        steps.append(Step(job.scheduled_at_ms, "submitted", "Not to run before this"))
    for attempt in job.history:
        steps += _attempt_steps(attempt)
    if job.attempts_left_out:
        text = f"{job.attempts_left_out} attempts in the middle are not kept"
        steps.append(Step(job.history[-1].claimed_at_ms or 0, "attempt", text))
    if job.finished_at_ms is not None:
        details = [] if job.error is None else [f"{job.error.code}: {job.error.message}"]
        title = formats.words(job.state.value).capitalize()
        steps.append(Step(job.finished_at_ms, job.state.value, title, details))
    for event in events:
        steps += _event_steps(event)
    ordered = sorted(enumerate(steps), key=lambda item: (item[1].at_ms, item[0]))
    return Timeline([step for _, step in ordered], *_bars(job))


def _attempt_steps(attempt: Attempt) -> list[Step]:
    number = "?" if attempt.attempt is None else attempt.attempt
    at_claim = attempt.tokens_at_claim or 0
    details = [f"by {attempt.worker}"] if attempt.worker else []
    if at_claim:
        details.append(f"continues from {at_claim} tokens")
    steps = [Step(attempt.claimed_at_ms or 0, "attempt", f"Attempt {number} claimed", details)]
    if attempt.ended_at_ms is None or attempt.cause in _ENDS:
        return steps  # it runs, or the end of the job says it
    cause = attempt.code or _CAUSES.get(attempt.cause or "", attempt.cause or "unknown")
    told = [cause, f"{attempt.tokens_at_end or 0} tokens are saved"]
    kind = "failed" if attempt.cause == "failed" else "interrupted"
    return [*steps, Step(attempt.ended_at_ms, kind, f"Attempt {number} ended", told)]


def _event_steps(event: EventStatus) -> list[Step]:
    path = f"/webhooks/events/{event.id}"
    steps = [Step(event.created_at_ms, "webhook", f"Event {event.type}", [event.url], path)]
    for number, sent in enumerate(event.log, start=1):
        is_delivered = sent.http_status is not None and 200 <= sent.http_status < 300
        shown = f"{sent.http_status or sent.reason} after {sent.duration_ms} ms"
        title = f"Webhook attempt {number}"
        kind = "delivered" if is_delivered else "failed"
        steps.append(Step(sent.at_ms, kind, title, [shown], path))
    return steps


def _bars(job: JobStatus) -> tuple[list[Bar], float]:
    """Return waiting and running times in their order, and the whole time in seconds."""
    end_ms = job.finished_at_ms or time.time() * 1000
    begin_ms = job.enqueued_at_ms
    whole_ms = max(1.0, end_ms - begin_ms)
    spans: list[tuple[float, float, str, str]] = []
    at_ms: float = begin_ms
    for attempt in job.history:
        claimed_ms = attempt.claimed_at_ms or at_ms
        ended_ms = attempt.ended_at_ms or end_ms
        spans.append((at_ms, claimed_ms, "waiting", "waiting"))
        kind = "running" if attempt.cause is None or attempt.cause in _ENDS else "interrupted"
        kind = "failed" if attempt.cause == "failed" else kind
        spans.append((claimed_ms, ended_ms, kind, f"attempt {attempt.attempt or '?'}"))
        at_ms = ended_ms
    last = "waiting" if job.state is JobState.QUEUED or not job.history else "ending"
    spans.append((at_ms, end_ms, last, last))
    bars = [
        Bar(
            round(100 * (since - begin_ms) / whole_ms, 2),
            round(max(_LEAST_WIDTH, 100 * (until - since) / whole_ms), 2),
            kind,
            f"{what}: {formats.duration((until - since) / 1000)}",
        )
        for since, until, kind, what in spans
        if until > since
    ]
    return bars, whole_ms / 1000
