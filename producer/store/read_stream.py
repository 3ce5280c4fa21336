"""A job's output as it is checkpointed: which part is new, and when it ends. No input or output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.errors import OutputRestarted
from batchmill.producer.protocol import calls, keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobResult

from .outcomes import unknown
from .read_ends import EndedJob

_FIELDS = ("state", "restarts", "result", "error")


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How much of an output has been read: keep it to go on from there, in any process."""

    num_tokens: int = 0
    #: Bytes of the text in UTF-8.
    num_text_bytes: int = 0
    #: Times that the output had been started over when it was read.
    num_restarts: int = 0


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """What is new in an output. Texts and token ids of all pieces, joined, are the result's.

    Text is never taken back. It may lag behind the tokens: a character or a stop string that is not
    complete yet is held, and comes with a later piece.
    """

    text: str
    token_ids: list[int]
    #: Where the next piece begins.
    position: StreamPosition


def queue_stream_read(pipeline: Any, job_id: str, position: StreamPosition) -> None:
    """Put the reads of what is new on a transaction (of either kind of client)."""
    pipeline.hmget(keys.job(job_id), _FIELDS)
    pipeline.getrange(keys.tokens(job_id), position.num_tokens * 4, -1)
    pipeline.getrange(keys.text(job_id), position.num_text_bytes, -1)


class StreamReader:
    """Follows one output. Owns the position; one reader a stream."""

    def __init__(self, job_id: str, position: StreamPosition | None) -> None:
        self._job_id = job_id
        self.position = position or StreamPosition()
        #: The job, once it has ended and all of its output has been taken.
        self.ended: EndedJob | None = None

    def take(self, replies: Sequence[Any]) -> StreamPiece | None:
        """Return what the replies to `queue_stream_read` bring, or None where nothing is new.

        Raises:
            UnknownJob: there is no such job.
            OutputRestarted: what was read before is not part of the output any more.
        """
        (state, restarts, result, error), tokens, text = replies
        if state is None:
            raise unknown(self._job_id)
        self._check_restarts(int(restarts or 0))
        state = JobState(state.decode())
        if state.is_terminal:
            self.ended = EndedJob(self._job_id, state, result, error)
            if result is not None:  # holds the whole text; what was written of it is gone
                whole = JobResult.model_validate_json(result).text.encode()
                text = whole[self.position.num_text_bytes :]
        if not tokens and not text:
            return None
        self.position = StreamPosition(
            self.position.num_tokens + len(tokens) // 4,
            self.position.num_text_bytes + len(text),
            self.position.num_restarts,
        )
        return StreamPiece(text.decode(), calls.decode_tokens(tokens), self.position)

    def check_end(self) -> None:
        """Raise the error of a job that ended without a completion.

        Raises:
            JobFailed, JobCancelled, JobExpired: it did.
        """
        assert self.ended is not None
        self.ended.result()

    def _check_restarts(self, num_restarts: int) -> None:
        before = self.position
        if num_restarts == before.num_restarts:
            return
        if before.num_tokens or before.num_text_bytes:
            raise OutputRestarted(
                f"job {self._job_id} was started over by a worker with another model or version; "
                "drop what was read and stream it from the start"
            )
        self.position = StreamPosition(0, 0, num_restarts)
