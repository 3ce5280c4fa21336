"""The ends of jobs, many at a time: what clients that wait for thousands read of a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.protocol import calls, keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobResult

from .outcomes import result_of, unknown

#: Fields of a record that tell how its job ended; never the document, which may be a megabyte.
END_FIELDS = ("state", "result", "error", "finished_at_ms")
#: Records read in one round trip: a result may be as long as its context.
MAX_READ_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended. Holds all there is to know: nothing here asks the broker.

    Attributes:
        id: the job.
        state: how it ended; None where its record is gone: never submitted to this broker, or its
            time to live ran out.
    """

    id: str
    state: JobState | None
    #: JSON of a `JobResult` and of a `JobError`, where there is one.
    result_json: bytes | None = None
    error_json: bytes | None = None
    token_ids: tuple[int, ...] = ()
    #: When it ended, by Redis' clock; None where the record does not say.
    finished_at_ms: int | None = None

    def result(self) -> JobResult:
        """Return the result.

        Raises:
            JobFailed, JobCancelled, JobExpired: it ended without a completion.
            UnknownJob: its record is gone.
        """
        if self.state is None:
            raise unknown(self.id)
        return result_of(self.id, self.state, self.result_json, self.error_json, self.token_ids)


def queue_end_reads(pipeline: Any, job_ids: Sequence[str]) -> None:
    """Put the reads of some records on a pipeline (of either kind of client)."""
    for job_id in job_ids:
        pipeline.hmget(keys.job(job_id), END_FIELDS)
        pipeline.get(keys.tokens(job_id))


def read_ends(job_ids: Sequence[str], replies: Sequence[Any]) -> list[EndedJob]:
    """Return what the replies to `queue_end_reads` say."""
    ends = []
    for i, job_id in enumerate(job_ids):
        (state, result, error, finished_at_ms), tokens = replies[2 * i], replies[2 * i + 1]
        ends.append(
            EndedJob(
                job_id,
                state=None if state is None else JobState(state.decode()),
                result_json=result,
                error_json=error,
                token_ids=tuple(calls.decode_tokens(tokens or b"")),
                finished_at_ms=None if finished_at_ms is None else int(finished_at_ms),
            )
        )
    return ends


def chunks(job_ids: Sequence[str], num_ids: int) -> Iterator[Sequence[str]]:
    """Cut a list of ids into pieces of bounded length."""
    for start in range(0, len(job_ids), num_ids):
        yield job_ids[start : start + num_ids]
