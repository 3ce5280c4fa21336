"""How jobs ended: `EndedJob`, and the read that loads many of them in one round trip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchmill.producer.moments import moment
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.content import Cipher, Unopened, UnreadableContent, is_sealed
from batchmill.producer.protocol.opening import open_fields, open_tokens
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.protocol.token_bytes import decode_tokens
from batchmill.producer.results import JobResult

from .reply_errors import result_of, unknown_job_error

#: Fields of a record that say how its job ended; never the document, which may be a megabyte.
END_FIELDS = ("state", "result", "error", "finished_at_ms")
#: Records read in one round trip: a result may be as long as its context.
MAX_ENDS_AT_ONCE = 100
_NO_FIELDS = (None,) * len(END_FIELDS)


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended, with all its data: no method asks the broker.

    Attributes:
        id: the job.
        state: how it ended; None if its record is gone: the job was never submitted to this
            broker, or its time to live ran out.
    """

    id: str
    state: JobState | None
    #: JSON of a `JobResult` and of a `JobError`, if there is one.
    result_json: bytes | None = None
    error_json: bytes | None = None
    token_ids: tuple[int, ...] = ()
    #: When it ended, by Redis' clock; None if the record does not say.
    finished_at_ms: int | None = None
    #: Why the result or the tokens cannot be opened; the result is None then.
    unreadable: UnreadableContent | None = None

    @property
    def finished_at(self) -> datetime | None:
        """When it ended, in UTC; None if its record is gone."""
        return moment(self.finished_at_ms)

    def result(self) -> JobResult:
        """Return the result.

        Raises:
            JobFailed, JobCancelled, JobExpired: it ended without a completion.
            UnknownJob: its record is gone.
            KeyMissing: the result is sealed, and the client that read it does not have the key.
            ContentChanged: the result was changed in Redis after it was sealed.
        """
        if self.state is None:
            raise unknown_job_error(self.id)
        if self.unreadable is not None:
            raise self.unreadable
        return result_of(self.id, self.state, self.result_json, self.error_json, self.token_ids)


def ended_jobs(job_ids: Sequence[str]) -> Read[list[EndedJob]]:
    """Read how jobs ended, with their output. Give at most `MAX_ENDS_AT_ONCE`."""

    def queue(pipeline: Any) -> None:
        for job_id in job_ids:
            pipeline.hmget(keys.job(job_id), END_FIELDS)
            pipeline.get(keys.tokens(job_id))
            pipeline.hgetall(keys.seals(job_id))

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        found: list[Any] = []
        for job_id, fields, tokens, seals in zip(job_ids, *_columns(replies), strict=True):
            is_all_sealed = isinstance(fields, list) and is_sealed(fields[1] or b"")
            found += (
                open_fields(cipher, job_id, END_FIELDS, fields),
                open_tokens(cipher, job_id, tokens, seals, must_be_sealed=is_all_sealed),
                seals,
            )
        return found

    def parse(replies: list[Any]) -> list[EndedJob]:
        fields, tokens, _ = _columns(replies)
        return list(map(_ended_job, job_ids, fields, tokens))

    return Read(queue, parse, keeps_errors=True, opens=opens)


def _columns(replies: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the fields, the tokens and the seals of all jobs."""
    return replies[::3], replies[1::3], replies[2::3]


def _ended_job(job_id: str, fields: Any, tokens: Any) -> EndedJob:
    """Return how a job ended. A record that batchmill did not write counts as gone."""
    try:
        state, result, error, finished_at_ms = stored(fields, default=_NO_FIELDS)
        unopened = (value.error for value in (result, tokens) if isinstance(value, Unopened))
        unreadable = next(unopened, None)
        if unreadable is not None:
            result = tokens = None
        return EndedJob(
            job_id,
            state=None if state is None else JobState(state.decode()),
            result_json=result,
            error_json=error,
            token_ids=tuple(decode_tokens(stored(tokens, default=b"") or b"")),
            finished_at_ms=None if finished_at_ms is None else int(finished_at_ms),
            unreadable=unreadable,
        )
    except ValueError:
        return EndedJob(job_id, state=None)


def chunks(job_ids: Sequence[str], num_ids: int) -> Iterator[Sequence[str]]:
    """Cut a list of ids into pieces of bounded length."""
    for start in range(0, len(job_ids), num_ids):
        yield job_ids[start : start + num_ids]
