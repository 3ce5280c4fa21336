"""The jobs of `submit_many` in groups of bounded size, one group per round trip. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.job_fields import JobFields
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import SubmitReply, SubmitStatus, submitted_ids
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.reply_errors import accepted_id
from batchmill.producer.store.submission import prepare
from batchmill.producer.tracing.sending import with_create_span

#: A job as callers give it: its prompt alone, all of its fields, or the checked job.
JobLike: TypeAlias = str | JobFields | GenerationJob
#: Called with the index of a rejected job in the input, and the reason.
OnRejected: TypeAlias = Callable[[int, JobRejected], None]

MAX_GROUP_JOBS = 500
#: Prompts may be a megabyte each: a group must not hold five hundred of those.
MAX_GROUP_BYTES = 4 << 20
#: Pause before a full queue is tried again.
FULL_PAUSE_S = 0.5


def as_job(job: object, fields: Mapping[str, Any]) -> GenerationJob:
    """Return the job that `submit` was given: its prompt, one value, or its fields by name.

    Raises:
        TypeError: a whole job was given, and fields as well; or two prompts.
        JobRejected: a field is invalid, or the job is of a type that no job has.
    """
    if job is None:
        return parse_job(fields)
    if isinstance(job, str):
        if "prompt" in fields:
            raise TypeError("the prompt is given twice: as the first argument, and as prompt=")
        return parse_job({"prompt": job, **fields})
    if fields:
        raise TypeError(f"give a job or its fields, not both; fields are {', '.join(fields)}")
    if isinstance(job, GenerationJob):
        return job
    if isinstance(job, Mapping):
        return parse_job(job)
    raise JobRejected(
        f"a job is a text (its prompt), a mapping of its fields, or a GenerationJob, not of type "
        f"{type(job).__name__}; give a list of token ids as prompt=, and a chat as messages="
    )


def prepared_job(
    job: JobLike | None, fields: Mapping[str, Any], settings: ProducerSettings
) -> NewJob:
    """Return the job to store; arguments and errors as of `as_job` and `prepare`."""
    return prepare(as_job(job, fields), settings)


class JobGroup:
    """Jobs that go to the broker in one round trip, with their places in the input.

    Without `on_rejected` it owns the first rejection: `check` raises it, once the jobs before it
    have been sent and their handles were yielded.
    """

    def __init__(
        self,
        settings: ProducerSettings,
        on_rejected: OnRejected | None,
        wait_when_full_s: float | None = None,
    ) -> None:
        self._settings = settings
        self._on_rejected = on_rejected
        self._wait_when_full_s = wait_when_full_s or 0.0
        self._full_since: float | None = None
        self._num_added = 0
        self._jobs: list[tuple[int, NewJob]] = []
        self._replies: list[SubmitReply | None] = []
        self._num_bytes = 0
        self._rejection: JobRejected | None = None

    def add(self, job: JobLike) -> None:
        """Check the next job of the input and keep it, or note its rejection."""
        index = self._num_added
        self._num_added += 1
        try:
            prepared = prepared_job(job, {}, self._settings)
            prepared = with_create_span(prepared, self._settings)
        except JobRejected as error:
            self._reject(index, error)
            return
        self._jobs.append((index, prepared))
        self._replies.append(None)
        self._num_bytes += prepared.num_bytes

    @property
    def must_be_sent(self) -> bool:
        """Whether it is full, or ends here because of a rejection."""
        return (
            len(self._jobs) >= MAX_GROUP_JOBS
            or self._num_bytes >= MAX_GROUP_BYTES
            or self._rejection is not None
        )

    def open_jobs(self) -> list[NewJob]:
        """Return the jobs without a reply, which are to be submitted."""
        return [self._jobs[place][1] for place in self._without_reply()]

    def note(self, replies: Sequence[SubmitReply]) -> float | None:
        """Note the replies to the submission of `open_jobs`.

        Returns:
            Seconds until the jobs that found a full queue are to be sent again; None if there are
            none, or the time to wait for room is over.
        """
        open_places = self._without_reply()
        for place, reply in zip(open_places, replies, strict=True):
            self._replies[place] = reply
        full = [place for place in open_places if self._status(place) is SubmitStatus.FULL]
        now = time.monotonic()
        if self._full_since is None or len(full) < len(open_places):
            self._full_since = now  # some were taken: the queue moves
        if not full or now - self._full_since >= self._wait_when_full_s:
            self._full_since = None
            return None
        for place in full:
            self._replies[place] = None
        return min(FULL_PAUSE_S, self._wait_when_full_s)

    def _without_reply(self) -> list[int]:
        return [place for place, reply in enumerate(self._replies) if reply is None]

    def _status(self, place: int) -> SubmitStatus | None:
        reply = self._replies[place]
        return None if reply is None else reply.status

    def submitted_ids(self) -> tuple[str, ...]:
        """Return the ids of the jobs that were accepted so far."""
        return submitted_ids(self._replies)

    def take_ids(self) -> Iterator[str]:
        """Empty the group and yield the ids of the jobs that were accepted."""
        sent = list(zip(self._jobs, self._replies, strict=True))
        self._jobs.clear()
        self._replies.clear()
        self._num_bytes = 0
        for (index, job), reply in sent:
            assert reply is not None  # `note` has noted every reply
            try:
                job_id = accepted_id(job, reply)
            except JobRejected as error:
                self._reject(index, error)
            else:
                yield job_id

    def check(self) -> None:
        """Raise the first rejection, unless `on_rejected` was called with it.

        Raises:
            JobRejected: of the first job that was rejected.
        """
        if self._rejection is not None:
            raise self._rejection

    def _reject(self, index: int, error: JobRejected) -> None:
        if self._on_rejected is not None:
            self._on_rejected(index, error)
        elif self._rejection is None:
            error.add_note(f"job {index} of the input, counted from 0")
            self._rejection = error
